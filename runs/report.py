"""The data of an evaluation's report, gathered from files: results, rounds, curves and config.

`write` makes report.json and report.html in the evaluation folder. Nothing is computed on a
device, so `--mode=report` makes the same report again.
"""

from __future__ import annotations

import json
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

from errors import InputError, advice
from readers.files import NUMBER, OPTIONAL_NUMBER, read_json, reading
from runs import ENVIRONMENTS, Arrays, load_rounds, results_folder, write_json, write_text
from runs.training_log import FILE_NAME, Curve, read_curves

ReportData = dict[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
CURVES = {"training/loss": "training", "held_out/loss": "held-out"}  # names in metrics.jsonl, here
MAX_POINTS = 300  # of a curve
MAX_BINS = 40  # of a histogram
CHECKPOINT = re.compile(r"checkpoint_([0-9]{1,12})")
MEASURE = {"name": str, "value": OPTIONAL_NUMBER, "stderr": OPTIONAL_NUMBER, "images": int}
RESULTS = {  # The parts of a results.json that the report reads.
    "step": int,
    "bpd?": {"passes": int, "images": int, "failed": int},
    "samples?": {"images": int, "guidance?": {"kind": str, "classes": list, "scale": NUMBER}},
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
    """The content of environments.json; a damaged file is replaced, with a warning."""
    path = folder / ENVIRONMENTS
    try:
        return read_json(path, [dict]) if path.exists() else []
    except InputError as error:
        logging.warning("%s The environments of earlier runs are lost.", error)
        return []


def write(workdir: str | Path, eval_folder: str = "eval") -> Path:
    """Write report.json and report.html of an evaluation folder; return the path of the latter.

    Only process 0 writes. Raises InputError if the folder has no results.
    """
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
    """Return the content of report.json, in which numbers that are not finite are null.

    Keys: name (of the folder), workdir (its name), checkpoints (a list; see `_checkpoint`),
    unfinished (names of folders without results), curves (by name, with steps and values),
    environments and config.
    """
    named = {path: CHECKPOINT.fullmatch(path.name) for path in folder.glob("checkpoint_*")}
    numbers = {path: int(match[1]) for path, match in named.items() if match}
    checkpoints = sorted(numbers, key=numbers.__getitem__)
    finished = [path for path in checkpoints if (path / "results.json").exists()]
    if not finished:
        raise InputError(f"{folder} has no results of an evaluation; run --mode=eval first.")
    data = {
        "name": folder.name,
        "workdir": workdir.resolve().name,
        "checkpoints": [_checkpoint(path, numbers[path]) for path in finished],
        "unfinished": [path.name for path in checkpoints if path not in finished],
        "curves": _curves(workdir / FILE_NAME),
        "environments": _read_environments(folder),
        "config": {},
    }
    if (folder / "config.json").exists():
        with advice(AGAIN):
            data["config"] = read_json(folder / "config.json", CONFIG)
    return json.loads(json.dumps(data), parse_constant=lambda constant: None)


def thin(curve: Curve, count: int) -> Curve:
    """Average neighbouring points of a curve, so that at most `count` points remain."""
    count = max(1, min(count, len(curve.steps)))
    parts = (np.array_split(each, count) for each in (curve.steps, curve.values))
    return Curve(*(np.array([part.mean() for part in each if len(part)]) for each in parts))


def _curves(path: Path) -> ReportData:
    found = read_curves(path)
    curves = {CURVES[name]: thin(found[name], MAX_POINTS) for name in CURVES if name in found}
    return {name: {"steps": x.tolist(), "values": y.tolist()} for name, (x, y) in curves.items()}


def _checkpoint(folder: Path, number: int) -> ReportData:
    """The part of report.json about one checkpoint.

    Keys: number, results (those of results.json), bpd_histogram (or null), sampling (NFE and speed,
    or null) and pictures (paths relative to the evaluation folder).
    """
    with advice(AGAIN):
        results = read_json(folder / "results.json", RESULTS)
    pictures = []
    if "samples" in results:
        pictures = ["samples.png"]  # A missing one is shown as missing.
        pictures += [name for name in ("real.png", "trajectory.png") if (folder / name).exists()]
    return {
        "number": number,
        "results": results,
        "bpd_histogram": _bpd_histogram(folder, **results["bpd"]) if "bpd" in results else None,
        "sampling": _sampling(folder, results["samples"]["images"]) if pictures else None,
        "pictures": [f"{folder.name}/{name}" for name in pictures],
    }


def _bpd_histogram(
    folder: Path, passes: int, images: int, failed: int, **_: object
) -> ReportData | None:
    """A histogram of the bits/dim of the images, each averaged over the passes."""
    rounds = _rounds(folder, "bpd", ["bpd"], passes * (images + failed))
    values = np.concatenate([each["bpd"] for each in rounds]).reshape(passes, -1).mean(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    edges = np.histogram_bin_edges(values, "auto")
    counts, edges = np.histogram(values, min(MAX_BINS, len(edges) - 1))
    return {"counts": counts.tolist(), "edges": edges.tolist(), "mean": float(values.mean())}


def _sampling(folder: Path, images: int) -> ReportData:
    """Network evaluations per image, and the speed.

    The first round of a run compiles the sampler, so it does not count towards the speed unless
    all rounds compiled.
    """
    rounds = _rounds(folder, "samples", ["nfe", "seconds", "first"], images)
    nfe = np.concatenate([each["nfe"] for each in rounds])
    compiled = [each for each in rounds if not each["first"].any()]
    timed = compiled or rounds
    seconds = sum(float(each["seconds"].sum()) for each in timed)
    return {
        "nfe": {"mean": float(nfe.mean()), "least": int(nfe.min()), "most": int(nfe.max())},
        "images_per_second": sum(len(each["nfe"]) for each in timed) / seconds,
        "compilation_included": not compiled,
    }


def _rounds(folder: Path, name: str, keys: Sequence[str], count: int) -> list[Arrays]:
    """The arrays `keys` of the rounds that hold the first `count` values of keys[0].

    Later rounds are left by an earlier evaluation, of more images. Raise InputError unless there is
    one value for each image.
    """
    rounds: list[Arrays] = []
    total = 0
    while total < count and (path := folder / f"{name}_{len(rounds)}.npz").exists():
        rounds.append(load_rounds([path], *keys))
        total += len(rounds[-1][keys[0]])
    if total != count or not rounds or any(each[keys[0]].ndim != 1 for each in rounds):
        raise InputError(
            f"{folder} has rounds {name}_*.npz with {keys[0]} of {total} images, but its "
            f"results.json states {count}. Write what is missing, with --mode=eval."
        )
    return rounds
