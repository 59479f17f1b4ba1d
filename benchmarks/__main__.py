"""`python -m benchmarks CASE [options]`: time a case and print a table.

Worker processes import this file, so that it imports the cases only when it runs one.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any, NoReturn

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
    "results": (".cache/benchmarks.jsonl", "Results, to resume from."),
    "shape": ([], "Batch size (0: the config's) x devices, such as 8x1 or 0x8."),
    "topology": (None, "Compile for TPUs, which need not be present: v5e:2x4, v6e:1x1, ..."),
    "program": ("train_step", "train_step, score or derivative."),
}
PAIRED = ("config", "set", "variant", "batch_size", "rounds", "against")
PEER = (*PAIRED, "peer", "peer_compile")
CASES = {  # name: (what is measured, names of OPTIONS)
    "train_step": ("train steps on a batch on the device", PEER),
    "forward": ("one evaluation of the score for a batch", PEER),
    "sampling": ("a batch of samples", (*PEER, "levels")),
    "likelihood": ("log p of a batch", PEER),
    "input_pipeline": ("reading batches of the data of a config", (*PAIRED, "in_memory")),
    "startup": ("a process, until its first train step", ("config", "set", "batch_size")),
    "memory": (
        "memory, FLOPs, bytes moved and sent by compiled programs; nothing is run",
        ("config", "set", "shape", "topology", "program", "results"),
    ),
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
                kind["type"] = type(default or "")
            each.add_argument(f"--{name}", **kind)
    options = parser.parse_args(arguments)
    if options.case != "memory":
        options.config = options.config or [FLAGSHIP]
    for name in ("batch_size", "rounds", "levels"):
        if getattr(options, name, 1) < 1:
            raise InputError(f"--{name}={getattr(options, name)} must be at least 1.")
    return options


def main(arguments: list[str]) -> None:
    """Run a case; an InputError prints one line and exits with code 1."""
    try:
        options = parse(arguments)
        module = options.case if options.case in ("memory", "startup") else "paired"
        importlib.import_module(f"benchmarks.{module}").show(options)
    except InputError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
