"""The cases that are timed in turn: which programs take part, and the table of the results."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import harness, peer, tables
from benchmarks.harness import Contestant
from benchmarks.programs import load_config

COLUMNS: tables.Columns = {
    "program": ("name", "", 1),
    "images/s": ("rate", ".3g", 1),
    "images/s of samples": ("images", ".3g", 1),
    "ms a run": ("seconds", ".1f", 1e3),
    "CPU ms an image": ("cpu", ".3f", 1e3),
    "TFLOP/s": ("tflops", ".3g", 1),
    "of the matmul rate, %": ("share", ".0f", 100),
    "times the peer": ("peer", ".2f", 1),
    "times the compiled peer": ("peer_compile", ".2f", 1),
    "times the other checkout": ("against", ".2f", 1),
    "evaluations": ("evaluations", ".0f", 1),
    "parameters, 10^6": ("parameters", ".2f", 1e-6),
    "peak memory, GB": ("memory", ".2f", 1e-9),
    "to compile, s": ("to_compile", ".1f", 1),
    "before, to lower, s": ("to_lower", ".1f", 1),
}


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Return the programs of all configs and variants, after those that they are compared with.

    Raises InputError for invalid configs, and for networks without a peer.
    """
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
            if case != "input_pipeline":  # It computes nothing.
                kind = config.model.dtype
                rivals["share"] = product = f"matrix products, {kind}"
                found[product] = Contestant(product, "benchmarks.timed:products", {"kind": kind})
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


def show(options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = harness.compare(contestants(options), options.rounds)
    columns = dict(COLUMNS)
    if options.case in ("sampling", "likelihood"):
        columns["evaluations of an image/s"] = columns.pop("images/s")
        for row in rows:
            if "evaluations" in row:
                row["images"] = row["rate"] / row["evaluations"]
    environment = harness.isolated(tables.environment)
    print(f"\n{options.case} at batch {options.batch_size}; on {environment}.\n")
    print("\n".join(tables.table(rows, columns)))
