"""`python -m benchmarks CASE [options]`: time a case and print a table.

Worker processes import this file, so that it imports the cases only when it runs one.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from benchmarks import harness, tables
from benchmarks.harness import Contestant
from errors import InputError

FLAGSHIP = "configs/ve/cifar10_ncsnpp_continuous.py"
OPTIONS: dict[str, tuple[Any, str]] = {  # name: (default, help)
    "config": ([], "A config file; several times for several."),
    "set": ([], "FIELD=VALUE, for all configs."),
    "variant": ([], "Fields separated by spaces: every config is timed with every variant."),
    "batch_size": (8, "Images in a batch."),
    "rounds": (5, "Rounds, in which all programs run in turn."),
    "peer": (False, "Compare with diffusers' UNet2DModel in PyTorch."),
    "peer_compile": (False, "Compare with it under torch.compile."),
    "against": ("", "The folder of another checkout, whose code is compared with this one."),
    "levels": (25, "Noise levels of predictor and corrector."),
    "in_memory": (False, "Images that fit into memory stay decoded."),
    "shape": ([], "Batch size (0: the config's) x devices, such as 8x1 or 0x8."),
    "topology": ("", "Compile for TPUs, which need not be present: v5e:2x4, v6e:1x1, ..."),
}
PAIRED = ("config", "set", "variant", "batch_size", "rounds", "against")
PEER = (*PAIRED, "peer", "peer_compile")
CASES = {  # name: (what is measured, names of OPTIONS)
    "train_step": ("train steps on a batch on the device", PEER),
    "forward": ("one evaluation of the score for a batch", PEER),
    "sampling": ("a batch of samples", (*PAIRED, "levels")),
    "likelihood": ("log p of a batch", PAIRED),
    "input_pipeline": ("reading batches of the data of a config", (*PAIRED, "in_memory")),
    "memory": (
        "memory and FLOPs of compiled train steps, and bytes sent; nothing is run",
        ("config", "set", "shape", "topology"),
    ),
}
COLUMNS: tables.Columns = {
    "program": ("name", "", 1),
    "images/s": ("rate", ".3g", 1),
    "images/s of samples": ("images", ".3g", 1),
    "ms a run": ("seconds", ".1f", 1e3),
    "CPU ms an image": ("cpu", ".3f", 1e3),
    "times the peer": ("peer", ".2f", 1),
    "times the compiled peer": ("peer_compile", ".2f", 1),
    "times the other checkout": ("against", ".2f", 1),
    "evaluations": ("evaluations", ".0f", 1),
    "parameters, 10^6": ("parameters", ".2f", 1e-6),
    "peak memory, GB": ("memory", ".2f", 1e-9),
    "to compile, s": ("to_compile", ".1f", 1),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. `{self.prog} --help` lists the options.")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the case and its options. Raises InputError."""
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    parsers = parser.add_subparsers(dest="case", required=True, metavar="CASE")
    for case, (text, names) in CASES.items():
        each = parsers.add_parser(case, help=text, description=text)
        for name in names:
            default, about = OPTIONS[name]
            kind: dict[str, Any] = {"default": default, "help": about}
            if isinstance(default, bool | list):
                kind["action"] = "append" if default == [] else "store_true"
            else:
                kind["type"] = type(default)
            each.add_argument(f"--{name}", **kind)
    options = parser.parse_args(arguments)
    if options.case != "memory":
        options.config = options.config or [FLAGSHIP]
    for name in ("batch_size", "rounds", "levels"):
        if getattr(options, name, 1) < 1:
            raise InputError(f"--{name}={getattr(options, name)} must be at least 1.")
    return options


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Return the programs of all configs and variants, after those that they are compared with.

    Raises InputError for invalid configs, and for networks without a peer.
    """
    from benchmarks import peer
    from benchmarks.programs import load_config

    found, case = {}, options.case
    own = {name: getattr(options, name) for name in ("levels", "in_memory") if name in options}
    for path in options.config:
        for variant in options.variant or [""]:
            overrides = [*options.set, *variant.split()]
            overrides.append(f"training.batch_size={options.batch_size}")
            config = load_config(path, overrides)
            name = " ".join([tables.config_name(path), *variant.split()])
            arguments = {"config": path, "overrides": overrides, **own}
            rivals = {}
            for column in ("peer", "peer_compile"):
                if getattr(options, column, False):
                    compiled = {"compiled": column != "peer"}
                    title = f"{peer.title(config, **compiled)}, of {name}"
                    changed = {**arguments, **compiled}
                    found[title] = Contestant(title, f"benchmarks.peer:{case}", changed)
                    rivals[column] = title
            for method in ("pc", "solver") if case == "sampling" else ("",):
                title = f"{name} {method}".strip()
                changed = arguments | ({"method": method} if method else {})
                each = Contestant(title, f"benchmarks.timed:{case}", changed, dict(rivals))
                if options.against:
                    other = f"{title}, code of {options.against}"
                    found[other] = each._replace(name=other, checkout=options.against)
                    each.rivals["against"] = other
                found[title] = each
    return list(found.values())


def time_case(options: argparse.Namespace) -> None:
    """Time the programs of a case in turn, and print their table."""
    rows = harness.compare(contestants(options), options.rounds)
    columns = dict(COLUMNS)
    if options.case in ("sampling", "likelihood"):
        columns["evaluations of an image/s"] = columns.pop("images/s")
        for row in rows:
            if "evaluations" in row:
                row["images"] = row["rate"] / row["evaluations"]
    environment = harness.isolated(tables.environment)
    print(f"\n{options.case} at batch {options.batch_size}; on {environment}.\n")
    print("\n".join(tables.table(rows, columns)))


def main(arguments: list[str]) -> None:
    """Run a case; an InputError prints one line and exits with code 1."""
    try:
        options = parse(arguments)
        if options.case == "memory":
            from benchmarks import memory

            memory.show(options)
        else:
            time_case(options)
    except InputError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
