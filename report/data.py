"""The data of an evaluation's report, gathered from files: results, rounds, curves and config.

`write` makes report.json and report.html in the evaluation folder. Nothing is computed on a
device, so `--mode=report` makes the same report again, also for folders of older versions.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from errors import InputError
from readers.files import read_json
from report import measures
from report.training_log import FILE_NAME, Curve, read_curves
from runs import ENVIRONMENTS, Arrays, load_rounds, results_folder, write_json, write_text

ReportData = dict[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
CURVES = {"training/loss": "training", "held_out/loss": "held-out"}  # names in metrics.jsonl, here
MAX_POINTS = 300  # of a curve
MAX_BINS = 40  # of a histogram
NUMBERED = re.compile(r"[a-z]+_[0-9]{1,12}")
CONFIG = {  # The fields of a config that the page names.
    "model": {"name": str},
    "training": {"sde": str},
    "data": {"dataset": str, "image_size": (int, list), "num_channels": int},
    "sampling": {"method": str, "predictor": str, "corrector": str},
}


def note_environment(folder: Path, mesh: Mesh) -> None:
    """Append the devices and versions of this process to environments.json, unless listed there."""
    kinds = {device.device_kind for device in mesh.devices.flat}
    environment = {
        "devices": f"{mesh.size} x {', '.join(sorted(kinds))}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        environment[package] = version(package)
    noted = _read_environments(folder)
    if environment not in noted:
        write_json(folder / ENVIRONMENTS, [*noted, environment])


def _read_environments(folder: Path) -> list[dict[str, str]]:
    """The content of environments.json; a damaged file is replaced, with a warning."""
    path = folder / ENVIRONMENTS
    if not path.exists():
        return []
    try:
        return read_json(path, [dict])
    except InputError as error:
        logging.warning("%s The environments of earlier runs are lost.", error)
        return []


def write(workdir: str | Path, eval_folder: str = "eval") -> Path:
    """Write report.json and report.html of an evaluation folder; return the path of the latter.

    Only process 0 writes. Raises InputError if the folder has no results.
    """
    folder = results_folder(workdir, eval_folder)
    if jax.process_index() == 0:
        from report import page  # Loads Matplotlib, which takes a second and is used only here.

        data = gather(folder, Path(workdir))
        write_text(folder / "report.json", json.dumps(data, indent=2, allow_nan=False))
        write_text(folder / "report.html", page.render(data, folder))
    return folder / "report.html"


def gather(folder: Path, workdir: Path) -> ReportData:
    """Return the content of report.json, in which numbers that are not finite are null.

    Keys: name (of the folder), workdir (its name), checkpoints (a list; see `_checkpoint`),
    unfinished (names of folders without results), curves (by name, with steps and values),
    environments and config.
    """
    checkpoints = _numbered(folder, "checkpoint_*")
    finished = [path for path in checkpoints if (path / "results.json").exists()]
    if not finished:
        raise InputError(f"{folder} has no results of an evaluation; run --mode=eval first.")
    data = {
        "name": folder.name,
        "workdir": workdir.resolve().name,
        "checkpoints": [_checkpoint(path) for path in finished],
        "unfinished": [path.name for path in checkpoints if path not in finished],
        "curves": _curves(workdir / FILE_NAME),
        "environments": _read_environments(folder),
        "config": _read_config(folder / "config.json"),
    }
    return _replace_non_finite(data)


def thin(curve: Curve, count: int) -> Curve:
    """Average neighbouring points of a curve, so that at most `count` points remain."""
    count = min(count, len(curve.steps))
    if not count:
        return curve
    steps = [part.mean() for part in np.array_split(curve.steps, count)]
    values = [part.mean() for part in np.array_split(curve.values, count)]
    return Curve(np.array(steps), np.array(values))


def _curves(path: Path) -> ReportData:
    found = read_curves(path)
    curves = {}
    for name, label in CURVES.items():
        if name in found:
            curve = thin(found[name], MAX_POINTS)
            curves[label] = {"steps": curve.steps.tolist(), "values": curve.values.tolist()}
    return curves


def _checkpoint(folder: Path) -> ReportData:
    """The part of report.json about one checkpoint.

    Keys: number, results (those of results.json), measures (see `measures.of`), bpd_histogram
    (or null), sampling (NFE and speed, or null) and pictures (paths relative to the evaluation
    folder).
    """
    try:
        results = read_json(folder / "results.json", measures.RESULTS)
    except InputError as error:
        raise InputError(f"{error} Write it again, with --mode=eval.") from error
    checkpoint = {
        "number": _number(folder),
        "results": results,
        "measures": measures.of(results),
        "bpd_histogram": None,
        "sampling": None,
        "pictures": [],
    }
    if "bpd" in results:
        checkpoint["bpd_histogram"] = _bpd_histogram(folder, results["bpd"])
    if "samples" in results:
        checkpoint["sampling"] = _sampling(folder, results["samples"]["images"])
        names = ["samples.png"]  # A missing one is shown as missing.
        names += [name for name in ("real.png", "trajectory.png") if (folder / name).exists()]
        checkpoint["pictures"] = [f"{folder.name}/{name}" for name in names]
    return checkpoint


def _bpd_histogram(folder: Path, summary: ReportData) -> ReportData | None:
    """A histogram of the bits/dim of the images, each averaged over the passes."""
    passes = summary["passes"]
    count = passes * (summary["images"] + summary["failed"])
    rounds = _rounds(folder, "bpd", "bpd", count)
    values = np.concatenate([np.array([]), *(each["bpd"] for each in rounds)])
    _check_count(folder, "bits/dim", values, count)
    values = values.reshape(passes, -1).mean(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    edges = np.histogram_bin_edges(values, "auto")
    counts, edges = np.histogram(values, min(MAX_BINS, len(edges) - 1))
    return {"counts": counts.tolist(), "edges": edges.tolist(), "mean": float(values.mean())}


def _check_count(folder: Path, name: str, values: np.ndarray, expected: int) -> None:
    """Raise InputError unless there is one value for each image that results.json counts."""
    if len(values) != expected or not expected or values.ndim != 1:
        raise InputError(
            f"{folder} has rounds with {name} of {len(values)} images, but its results.json states "
            f"{expected}. Write what is missing, with --mode=eval."
        )


def _sampling(folder: Path, images: int) -> ReportData:
    """Network evaluations per image, and the speed.

    The first round of a run compiles the sampler, so it does not count towards the speed unless
    all timed rounds compiled. Rounds of old versions have no times.
    """
    rounds = _rounds(folder, "samples", "nfe", images, optional=["seconds", "first"])
    nfe = np.concatenate([np.array([]), *(each["nfe"] for each in rounds)])
    _check_count(folder, "samples", nfe, images)
    timed = [each for each in rounds if {"seconds", "first"} <= each.keys()]
    compiled = [each for each in timed if not each["first"].any()]
    speed = None
    if timed:
        counted = compiled or timed
        count = sum(len(each["nfe"]) for each in counted)
        speed = count / sum(float(each["seconds"].sum()) for each in counted)
    return {
        "nfe": {"mean": float(nfe.mean()), "least": int(nfe.min()), "most": int(nfe.max())},
        "images_per_second": speed,
        "compilation_included": bool(timed and not compiled),
    }


def _rounds(
    folder: Path, name: str, entry: str, count: int, optional: Sequence[str] = ()
) -> list[Arrays]:
    """The rounds that hold the first `count` values of an entry.

    Later ones are left by an earlier evaluation, of more images.
    """
    found, total = [], 0
    for index, path in enumerate(_numbered(folder, f"{name}_*.npz")):
        if total >= count or _number(path) != index:
            break
        found.append(load_rounds([path], entry, optional=optional))
        total += len(found[-1][entry])
    return found


def _numbered(folder: Path, pattern: str) -> list[Path]:
    """The files or folders of a pattern that are named NAME_NUMBER, in the order of numbers."""
    found = [path for path in folder.glob(pattern) if NUMBERED.fullmatch(path.stem)]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    """The number at the end of a file's or folder's name."""
    return int(path.stem.rpartition("_")[2])


def _read_config(path: Path) -> ReportData:
    """The config of an evaluation folder; empty if the folder has none."""
    if not path.exists():
        return {}
    try:
        return read_json(path, CONFIG)
    except InputError as error:
        raise InputError(f"{error} Write it again, with --mode=eval, or delete it.") from error


def _replace_non_finite(tree: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None."""
    if isinstance(tree, dict):
        return {key: _replace_non_finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replace_non_finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
