"""Paired timing of our networks, in several variants, with PyTorch; flags of the speed benchmarks.

train_step, sampling and likelihood state what they time as competitors; this module builds them for
each config and variant, times them in turn and prints the table.
"""

from __future__ import annotations

import ast
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from benchmarks import peer as peers
from benchmarks import peer_runs, speed
from configs.default import Config, complete
from errors import InputError

FLAGSHIP = "configs/ve/cifar10_ncsnpp_continuous.py"
Make = Callable[[Config, Mapping[str, str]], Any]
"""(config, rivals) -> a `speed.Competitor` with `prepare`, which puts its data on the device."""
MakePeer = Callable[[peers.Peer], peer_runs.TimedPeer]


# --- configs ---


def load_config(path: str, overrides: Iterable[str] = ()) -> Config:
    """Load a config file and override fields, as in 'model.dropout=0.0'.

    Raises InputError for a file without a config, an unknown field and a value of the wrong type.
    """
    try:
        config = complete(runpy.run_path(path)["get_config"]())
    except (OSError, KeyError) as error:
        raise InputError(f"--config={path} is no config file: {error}") from error
    for override in overrides:
        field, _, text = override.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"--set={override} does not fit {path}: {' '.join(str(error).split())}."
            ) from error
    return config


def config_name(path: str) -> str:
    """Return the name of a config file in tables."""
    return path.removeprefix("configs/").removesuffix(".py")


def variants(
    paths: Sequence[str], overrides: Sequence[str], variant: Sequence[str]
) -> dict[str, Config]:
    """Load a config for each file and variant; return them by name."""
    configs = {}
    for path in paths:
        for each in variant:
            fields = each.split()
            name = " ".join([config_name(path), *fields])
            configs[name] = load_config(path, [*overrides, *fields])
    return configs


# --- timing ---


def compare(
    make: Mapping[str, Make],
    make_peer: MakePeer,
    *,
    config: Sequence[str],
    overrides: Sequence[str] = (),
    variant: Sequence[str] = ("",),
    rounds: int,
    peer: bool = False,
    peer_compile: bool = False,
    size: int | None = None,
) -> list[speed.Row]:
    """Time competitors for configs and variants; return a row for each.

    Args:
      make: constructors of competitors by name. Constructing one compiles it.
      make_peer: constructor of the peer's competitor.
      config, overrides, variant, peer, peer_compile: see the flags.
      rounds: timed rounds. 0 compiles without timing.
      size: of the matrices in matrix products.

    Raises InputError for invalid configs and for peers that are not available.
    """
    compared_peers = {}
    if peer:
        compared_peers["ratio"] = False
    if peer_compile:
        compared_peers["ratio_compiled"] = True
    competitors, own, timed_peers = {}, {}, {}
    for name, each in variants(config, overrides, variant).items():
        rivals = {}
        for key, compiled in compared_peers.items():
            title = f"{peers.title(each, compiled)}, of {name}"
            timed_peers[title] = make_peer(peers.Peer(each, compiled=compiled))
            competitors[title] = timed_peers[title]
            rivals[key] = title
        for label, constructor in make.items():
            title = f"{name} {label}" if label else name
            own[title] = constructor(each, rivals)
            competitors[title] = own[title]
    if rounds == 0:
        for timed_peer in timed_peers.values():
            timed_peer()
        return [{"name": name} | each.facts for name, each in competitors.items()]
    for competitor in own.values():
        competitor.prepare()
    kinds = [competitor.product for competitor in own.values()]
    return speed.time_competitors(competitors, rounds, kinds, size)


def show(
    title: str, measure: Callable[..., list[speed.Row]], columns: speed.Columns, **options: Any
) -> None:
    """Print the table of the rows that `measure` returns for the flags and these options."""
    arguments = flag_arguments()
    packages = ()
    if arguments["peer"] or arguments["peer_compile"]:
        packages = ("torch", "diffusers")
        share_gpu_memory()
    rows = measure(**arguments, **options)
    title = title.format(**arguments, **options)
    print(f"\n{title}; on {speed.environment(*packages)}.\n")
    print("\n".join(speed.table(rows, columns)))


def share_gpu_memory() -> None:
    """Reserve half of the GPU's memory for PyTorch, unless the environment states JAX's share."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")


def columns(others: speed.Columns) -> speed.Columns:
    """Return the columns of the tables, followed by `others`."""
    return {
        "program": ("name", "", 1),
        "images/s": ("rate", ".3g", 1),
        "ms a run": ("seconds", ".1f", 1e3),
        "TFLOP/s": ("tflops", ".3g", 1),
        "of the matmul rate, %": ("share", ".0f", 100),
        "times the peer": ("ratio", ".2f", 1),
        "times the compiled peer": ("ratio_compiled", ".2f", 1),
        "parameters, 10^6": ("parameters", ".2f", 1e-6),
        "peak memory, GB": ("memory", ".2f", 1e-9),
        "to compile, s": ("to_compile", ".1f", 1),
    } | others


# --- flags ---


def define_config_flags(batch_size: int) -> None:
    """Define the flags that select the networks."""
    flags.DEFINE_multi_string("config", [FLAGSHIP], "Config files.")
    flags.DEFINE_multi_string("set", [], "A field for all configs: --set=model.dropout=0.0.")
    flags.DEFINE_integer("batch_size", batch_size, "Images in a batch.", lower_bound=1)


def define_flags(batch_size: int) -> None:
    """Define the flags that `flag_arguments` reads."""
    define_config_flags(batch_size)
    flags.DEFINE_multi_string(
        "variant",
        [""],
        "Fields separated by spaces: every config is timed with every variant.",
    )
    flags.DEFINE_integer(
        "rounds",
        5,
        "Rounds, in each of which all competitors run once, in turn; tables show medians.",
        lower_bound=1,
    )
    flags.DEFINE_bool("peer", False, "Compare with diffusers' UNet2DModel in PyTorch.")
    flags.DEFINE_bool("peer_compile", False, "Compare with the same network under torch.compile.")


def flag_arguments() -> dict[str, Any]:
    """Return the values of the flags as keyword arguments of `compare`, and the batch size."""
    names = ("config", "variant", "batch_size", "rounds", "peer", "peer_compile")
    arguments = {name: flags.FLAGS[name].value for name in names}
    return arguments | {"overrides": flags.FLAGS["set"].value}


def run(main: Callable[[], None]) -> None:
    """Run a script; an InputError prints one line and exits with code 1."""

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            if argv[1:]:
                raise InputError(f"unexpected positional arguments: {' '.join(argv[1:])}.")
            main()
        except InputError as error:
            sys.exit(f"Error: {error}")

    app.run(guarded)
