"""The data of an evaluation's report, gathered from files alone: results, curves and config."""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from errors import InputError, advice
from readers.files import NUMBER, OPTIONAL_NUMBER, read_json, reading
from runs import ENVIRONMENTS, results_folder, write_json, write_text
from runs.training_log import FILE_NAME, Curve, read_curves

ReportData = dict[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
CURVES = {"training/loss": "training", "held_out/loss": "held-out"}  # names in metrics.jsonl, here
MAX_POINTS = 300  # of a curve
CHECKPOINT = re.compile(r"checkpoint_([0-9]{1,12})")
MEASURE = {"name": str, "value": OPTIONAL_NUMBER, "stderr": OPTIONAL_NUMBER, "images": int}
RESULTS = {  # The parts of a results.json that the report reads.
    "step": int,
    "bpd?": {"images": int, "mean": NUMBER, "histogram": {"counts": [int], "edges": [NUMBER]}},
    "samples?": {
        "images": int,
        "nfe": NUMBER,
        "nfe_range": [int],
        "images_per_second": NUMBER,
        "compilation_included": bool,
        "guidance?": {"kind": str, "classes": list, "scale": NUMBER},
    },
    "measures": [MEASURE | {"note": str}],
}
CONFIG = {  # The fields of a config that the page names.
    "model": {"name": str},
    "training": {"sde": str},
    "data": {"dataset": str, "image_size": (int, list), "num_channels": int},
    "sampling": {"method": str, "predictor": str, "corrector": str},
}
AGAIN = "Write it again, with --mode=eval."


def note_environment(folder: Path, mesh: Mesh) -> None:
    """Append the devices and versions of this process to environments.json, unless listed there."""
    kinds = {device.device_kind for device in mesh.devices.flat}
    devices = f"{mesh.size} x {', '.join(sorted(kinds))}"
    environment = {"devices": devices, "python": platform.python_version()}
    environment |= {package: version(package) for package in PACKAGES}
    noted = _read_environments(folder)
    if environment not in noted:
        write_json(folder / ENVIRONMENTS, [*noted, environment])


def _read_environments(folder: Path) -> list[dict[str, str]]:
    path = folder / ENVIRONMENTS
    try:
        return read_json(path, [dict]) if path.exists() else []
    except InputError as error:
        logging.warning("%s The environments of earlier runs are lost.", error)
        return []


def write(workdir: str | Path, eval_folder: str = "eval") -> Path:
    """Write report.json and report.html of an evaluation folder; return the path of the latter."""
    folder = results_folder(workdir, eval_folder)
    if jax.process_index() == 0:
        from runs import page  # Loads Matplotlib, which takes a second and is used only here.

        with reading(folder, AGAIN):  # Its files may hold any numbers.
            data = gather(folder, Path(workdir))
            content, html = json.dumps(data, indent=2, allow_nan=False), page.render(data, folder)
        write_text(folder / "report.json", content)
        write_text(folder / "report.html", html)
    return folder / "report.html"


def gather(folder: Path, workdir: Path) -> ReportData:
    """Return the content of report.json, in which numbers that are not finite are null."""
    named = ((CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("checkpoint_*"))
    checkpoints = sorted((int(match[1]), path) for match, path in named if match)
    finished = [each for each in checkpoints if (each[1] / "results.json").exists()]
    if not finished:
        raise InputError(f"{folder} has no results of an evaluation; run --mode=eval first.")
    config, found = {}, read_curves(workdir / FILE_NAME)
    curves = {label: thin(found[name]) for name, label in CURVES.items() if name in found}
    with advice(AGAIN):
        if (folder / "config.json").exists():
            config = read_json(folder / "config.json", CONFIG)
        data = {
            "name": folder.name,
            "workdir": workdir.resolve().name,
            "checkpoints": [_checkpoint(number, path) for number, path in finished],
            "unfinished": [each[1].name for each in checkpoints if each not in finished],
            "curves": {
                name: {"steps": x.tolist(), "values": y.tolist()} for name, (x, y) in curves.items()
            },
            "environments": _read_environments(folder),
            "config": config,
        }
    return json.loads(json.dumps(data), parse_constant=lambda constant: None)


def thin(curve: Curve, count: int = MAX_POINTS) -> Curve:
    """Average neighbouring points of a curve, so that at most `count` points remain."""
    count = max(1, min(count, len(curve.steps)))
    parts = (np.array_split(each, count) for each in curve)
    return Curve(*(np.array([part.mean() for part in each if len(part)]) for each in parts))


def _checkpoint(number: int, folder: Path) -> ReportData:
    """The part of report.json about one checkpoint.

    Keys: number, results (those of results.json) and pictures (relative to the evaluation folder).
    """
    results, pictures = read_json(folder / "results.json", RESULTS), []
    if "samples" in results:
        pictures = ["samples.png"]  # A missing one is shown as missing.
        pictures += [name for name in ("real.png", "trajectory.png") if (folder / name).exists()]
    pictures = [f"{folder.name}/{name}" for name in pictures]
    return {"number": number, "results": results, "pictures": pictures}
