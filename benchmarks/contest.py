"""Ours, in several variants, against PyTorch: what train_step, sampling and likelihood share, flags included."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from benchmarks import peer as peers
from benchmarks import speed
from configs.default import Config, complete
from errors import InputError

FLAGSHIP = "configs/ve/cifar10_ncsnpp_continuous.py"
Make = Callable[[Config, Mapping[str, str]], Any]
MakePeer = Callable[[peers.Peer], peers.Contestant]


def load(path: str, overrides: Iterable[str] = ()) -> Config:
    """The config of a file, with fields changed as in 'model.dropout=0.0'.

    Raises InputError for a file without a config, and for fields or values that do not fit.
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


def variants(
    config: Sequence[str], set: Sequence[str], variant: Sequence[str]
) -> dict[str, Config]:  # noqa: A002
    """A config for each file and variant, by name."""
    found = {}
    for path in config:
        for each in variant:
            name = path.removeprefix("configs/").removesuffix(".py")
            found[" ".join([name, *each.split()])] = load(path, [*set, *each.split()])
    return found


def contest(
    make: Mapping[str, Make],
    make_peer: MakePeer,
    *,
    config: Sequence[str],
    set: Sequence[str] = (),  # noqa: A002
    variant: Sequence[str] = ("",),
    rounds: int,
    peer: bool = False,
    peer_compile: bool = False,
    size: int | None = None,
) -> list[speed.Row]:
    """Rows about contestants for configs and variants, as the flags say.

    Args:
      make: by name, (config, rivals) -> ours, as `speed.compete` takes it, compiled; its `prepare` puts data on the
        device.
      make_peer: peer -> theirs.
      rounds: 0 only compiles. size: of the matrices.

    Raises InputError for bad configs, and for peers that cannot be had.
    """
    contestants, ours, theirs = {}, {}, {}
    for name, each in variants(config, set, variant).items():
        rivals = {}
        for key, compiled in [("ratio", False)] * peer + [("ratio_compiled", True)] * peer_compile:
            rivals[key] = f"{peers.title(each, compiled)}, of {name}"
            theirs[rivals[key]] = contestants[rivals[key]] = make_peer(
                peers.Peer(each, compiled=compiled)
            )
        for label, constructor in make.items():
            title = " ".join(filter(None, [name, label]))
            ours[title] = contestants[title] = constructor(each, rivals)
    if not rounds:
        for each in theirs.values():
            each()
        return [{"name": name} | each.facts for name, each in contestants.items()]
    for each in ours.values():
        each.prepare()
    return speed.compete(contestants, rounds, [each.rate for each in ours.values()], size)


def show(
    title: str, measure: Callable[..., list[speed.Row]], columns: speed.Columns, **options: Any
) -> None:
    """Prints the table of what `measure` returns for the flags and these options."""
    given = arguments()
    packages = ("torch", "diffusers") if given["peer"] or given["peer_compile"] else ()
    if packages:
        share_the_card()
    rows = measure(**given, **options)
    title = title.format(**given, **options)
    print(
        "\n".join(
            ["", f"{title}; on {speed.environment(*packages)}.", "", *speed.table(rows, columns)]
        )
    )


def share_the_card() -> None:
    """Leaves PyTorch half of the GPU's memory, unless the environment says what JAX is to take."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")


def columns(others: speed.Columns) -> speed.Columns:
    """The columns of the tables; `others` come last."""
    return {
        "contestant": ("name", "", 1),
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


def define_config_flags(batch_size: int) -> None:
    """The flags that say of what speed is measured."""
    flags.DEFINE_multi_string("config", [FLAGSHIP], "Config files.")
    flags.DEFINE_multi_string("set", [], "A field for all, as in --set=model.dropout=0.0.")
    flags.DEFINE_integer("batch_size", batch_size, "Images of a batch.", lower_bound=1)


def define_flags(batch_size: int) -> None:
    """The flags of the scripts; `arguments` reads them."""
    define_config_flags(batch_size)
    flags.DEFINE_multi_string(
        "variant", [""], "Fields, apart by spaces: a contestant for each config and variant."
    )
    flags.DEFINE_integer(
        "rounds", 5, "Timed runs of each contestant, in turn; the median counts.", lower_bound=1
    )
    flags.DEFINE_bool("peer", False, "Compare with diffusers' UNet2DModel in PyTorch.")
    flags.DEFINE_bool("peer_compile", False, "Compare with the same under torch.compile, too.")


def arguments() -> dict[str, Any]:
    """The flags of `define_flags`, as `contestants` takes them."""
    names = "config", "set", "variant", "batch_size", "rounds", "peer", "peer_compile"
    return {name: flags.FLAGS[name].value for name in names}


def run(main: Callable[[], None]) -> None:
    """Runs a script; what the user can put right ends in one sentence and exit code 1."""

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            if argv[1:]:
                raise InputError(f"arguments that are no flags: {' '.join(argv[1:])}.")
            main()
        except InputError as error:
            sys.exit(f"Error: {error}")

    app.run(guarded)
