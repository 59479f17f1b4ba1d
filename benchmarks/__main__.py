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


OPTIONS: dict[str, dict[str, Any]] = {
    "config": {"action": "append", "help": "A config file; several times for several."},
    "set": {"action": "append", "default": [], "help": "FIELD=VALUE, for all configs."},
    "variant": {
        "action": "append",
        "help": "Fields separated by spaces: every config is timed with every variant.",
    },
    "batch_size": {"type": int, "default": 8, "help": "Images in a batch."},
    "rounds": {"type": int, "default": 5, "help": "Rounds, in which all programs run in turn."},
    "peer": {"action": "store_true", "help": "Compare with diffusers' UNet2DModel in PyTorch."},
    "peer_compile": {"action": "store_true", "help": "Compare with it under torch.compile."},
    "against": {
        "default": "",
        "help": "The folder of another checkout, whose code is compared with this one.",
    },
    "steps": {"type": int, "default": 0, "help": "Train steps of a run; 0: 1 on CPUs, else 10."},
    "levels": {"type": int, "default": 25, "help": "Noise levels of predictor and corrector."},
    "tolerance": {"type": float, "default": 0.1, "help": "Of the adaptive steps."},
    "batches": {"type": int, "default": 32, "help": "Batches that are read in a run."},
    "in_memory": {"action": "store_true", "help": "Images that fit into memory stay decoded."},
    "size": {"type": int, "default": 0, "help": "Of the matrices of matrix products."},
    "starts": {"type": int, "default": 1, "help": "Cold and warm starts; tables show medians."},
    "results": {"default": ".cache/benchmarks.jsonl", "help": "Results, to resume from."},
    "shape": {
        "action": "append",
        "help": "Batch size (0: the config's) x devices, such as 8x1 or 0x8.",
    },
    "topology": {
        "help": "Compile for these TPUs, which need not be present (pip install libtpu): v5e:2x4, "
        "v5p:2x2x1, v6e:1x1, ..."
    },
    "program": {"default": "train_step", "choices": ("train_step", "score", "derivative")},
}
PAIRED = ("config", "set", "variant", "batch_size", "rounds", "size", "against")
PEER = ("peer", "peer_compile")
CASES = {
    "train_step": ("train steps on a batch on the device", (*PAIRED, *PEER, "steps")),
    "forward": ("one evaluation of the score for a batch", (*PAIRED, *PEER)),
    "sampling": ("a batch of samples", (*PAIRED, *PEER, "levels")),
    "likelihood": ("log p of a batch", (*PAIRED, *PEER, "tolerance")),
    "input_pipeline": (
        "reading batches of the data of a config",
        (*PAIRED, "batches", "in_memory"),
    ),
    "startup": (
        "a process, from its start to the first train step",
        ("config", "set", "batch_size", "starts"),
    ),
    "memory": (
        "memory, FLOPs, bytes moved and sent by compiled programs; nothing is run",
        ("config", "set", "shape", "topology", "program", "results"),
    ),
}
"""What is measured, and the keys of OPTIONS, by the name of the case."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are InputErrors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. `{self.prog} --help` lists the options.")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the case and its options. Raises InputError."""
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    parsers = parser.add_subparsers(dest="case", required=True, metavar="CASE")
    for name, (text, own) in CASES.items():
        each = parsers.add_parser(name, help=text, description=text)
        for option in own:
            each.add_argument(f"--{option}", **OPTIONS[option])
    options = parser.parse_args(arguments)
    if options.case != "memory" and not options.config:
        options.config = [FLAGSHIP]
    for name in ("batch_size", "rounds", "batches", "starts", "levels"):
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
