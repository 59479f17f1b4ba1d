"""The data of an evaluation's report, gathered from files: results, rounds, curves and config.

`write` makes report.json and report.html in the evaluation folder. Nothing is computed on a
device, so `--mode=report` makes the same report again, also for folders of older versions.
"""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from errors import InputError
from report import measures
from report.training_log import FILE_NAME, Curve, read_curves
from workdir import load_rounds, write_atomically

ReportData = dict[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
CURVES = {"training/loss": "training", "held_out/loss": "held-out"}  # names in metrics.jsonl, here
MAX_POINTS = 300  # of a curve
MAX_BINS = 40  # of a histogram
ENVIRONMENTS = "environments.json"


def note_environment(folder: Path, mesh: Mesh) -> None:
    """Append the devices and versions of this process to environments.json, unless listed there."""
    kinds = {device.device_kind for device in mesh.devices.flat}
    environment = {
        "devices": f"{mesh.size} x {', '.join(sorted(kinds))}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        environment[package] = version(package)
    noted = _read_json(folder / ENVIRONMENTS, [])
    if environment not in noted:
        _write_text(folder / ENVIRONMENTS, json.dumps([*noted, environment], indent=2))


def write(workdir: str | Path, eval_folder: str = "eval") -> Path:
    """Write report.json and report.html of an evaluation folder; return the path of the latter.

    Only process 0 writes. Raises InputError if the folder has no results.
    """
    folder = Path(workdir) / eval_folder
    if jax.process_index() == 0:
        from report import page  # Loads Matplotlib, which takes a second and is used only here.

        data = gather(folder, Path(workdir))
        _write_text(folder / "report.json", json.dumps(data, indent=2, allow_nan=False))
        _write_text(folder / "report.html", page.render(data, folder))
    return folder / "report.html"


def gather(folder: Path, workdir: Path) -> ReportData:
    """Return the content of report.json, in which numbers that are not finite are null.

    Keys: name (of the folder), workdir (its name), checkpoints (a list; see `_checkpoint`),
    unfinished (names of folders without results), curves (by name, with steps and values),
    environments and config.
    """
    checkpoints = sorted(folder.glob("checkpoint_*"), key=_number)
    finished = [path for path in checkpoints if (path / "results.json").exists()]
    if not finished:
        raise InputError(f"{folder} has no results of an evaluation; run --mode=eval first.")
    data = {
        "name": folder.name,
        "workdir": workdir.resolve().name,
        "checkpoints": [_checkpoint(path) for path in finished],
        "unfinished": [path.name for path in checkpoints if path not in finished],
        "curves": _curves(workdir / FILE_NAME),
        "environments": _read_json(folder / ENVIRONMENTS, []),
        "config": _read_json(folder / "config.json", {}),
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
    results = _read_json(folder / "results.json", {})
    checkpoint = {
        "number": _number(folder),
        "results": results,
        "measures": measures.of(results),
        "bpd_histogram": None,
        "sampling": None,
        "pictures": [],
    }
    if "bpd" in results:
        checkpoint["bpd_histogram"] = _bpd_histogram(folder, results["bpd"]["passes"])
    if "samples" in results:
        checkpoint["sampling"] = _sampling(folder)
        names = [f"{folder.name}/{name}.png" for name in ("samples", "trajectory")]
        checkpoint["pictures"] = [name for name in names if (folder.parent / name).exists()]
    return checkpoint


def _bpd_histogram(folder: Path, passes: int) -> ReportData:
    """A histogram of the bits/dim of the images, each averaged over the passes."""
    rounds = load_rounds(_rounds(folder, "bpd"), "bpd")
    values = rounds["bpd"].reshape(passes, -1).mean(0)
    values = values[np.isfinite(values)]
    edges = np.histogram_bin_edges(values, "auto")
    counts, edges = np.histogram(values, min(MAX_BINS, len(edges) - 1))
    return {"counts": counts.tolist(), "edges": edges.tolist(), "mean": float(values.mean())}


def _sampling(folder: Path) -> ReportData:
    """Network evaluations per image, and the speed.

    The first round of a run compiles the sampler, so it does not count towards the speed unless
    all timed rounds compiled. Rounds of old versions have no times.
    """
    rounds = [load_rounds([path], "nfe", "seconds", "first") for path in _rounds(folder, "samples")]
    nfe = np.concatenate([each["nfe"] for each in rounds])
    timed = [each for each in rounds if "seconds" in each]
    compiled = [each for each in timed if not each["first"].any()]
    speed = None
    if timed:
        counted = compiled or timed
        images = sum(len(each["nfe"]) for each in counted)
        speed = images / sum(float(each["seconds"].sum()) for each in counted)
    return {
        "nfe": {"mean": float(nfe.mean()), "least": int(nfe.min()), "most": int(nfe.max())},
        "images_per_second": speed,
        "compilation_included": bool(timed and not compiled),
    }


def _rounds(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}_*.npz"), key=_number)


def _number(path: Path) -> int:
    """The number at the end of a file's or folder's name."""
    return int(path.stem.rsplit("_", 1)[1])


def _read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _replace_non_finite(tree: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None."""
    if isinstance(tree, dict):
        return {key: _replace_non_finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replace_non_finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
