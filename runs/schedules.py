"""Fitted noise levels, in a file beside the parameters that they were fitted to.

`--mode=fit_schedule` writes it: `schedules.json` in a workdir, and `NAME.schedules.json` beside a
file of parameters. Entries have the checksum of their parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sampling
from errors import naming
from readers.files import NUMBER, read_json
from runs.files import tree_checksum, write_json
from sampling import Fitted
from sde_lib import SDE

SCHEMA = [{"parameters": int, "sampler": str, "levels": [NUMBER]}]


def path_of(source: str | Path) -> Path:
    """Return the file of a workdir, or of a file of parameters."""
    source = Path(source)
    return source / "schedules.json" if source.is_dir() else source.with_suffix(".schedules.json")


def read(source: str | Path, params: Any, sde: SDE) -> tuple[Fitted, ...]:
    """Return the levels that were fitted to these parameters, and print what uses them.

    Raises InputError for a damaged file, and for levels that the sampler cannot take.
    """
    path, found = path_of(source), []
    if not path.exists():
        return ()
    checksum = tree_checksum(params)
    with naming(str(path)):
        for entry in read_json(path, SCHEMA):
            if entry["parameters"] == checksum:
                fitted = Fitted(entry["sampler"], tuple(map(float, entry["levels"])))
                sampling.make(fitted.sampler, sde, schedule=fitted.levels)  # Checks them.
                found.append(fitted)
    uses = ", ".join(f"{each.sampler!r} with {each.steps} steps" for each in found)
    note = f"it has the noise levels of {uses} for this network"
    if not found:
        note = "not used, since other parameters were fitted; repeat --mode=fit_schedule"
    print(f"NOTE: {path}: {note}.", flush=True)
    return tuple(found)


def write(source: str | Path, params: Any, fitted: Fitted) -> Path:
    """Add levels that were fitted to these parameters to the file, and return it.

    They replace those of the same parameters, solver and steps.
    """
    path = path_of(source)
    new = {"parameters": tree_checksum(params), **fitted._asdict()}
    before = read_json(path, SCHEMA) if path.exists() else []

    def use(entry: dict[str, Any]) -> tuple[Any, ...]:
        return entry["parameters"], entry["sampler"], len(entry["levels"])

    write_json(path, [*(each for each in before if use(each) != use(new)), new])
    return path
