"""The report of an evaluation, report.html and report.json in its folder: made from files alone, those of the workdir.

So `--mode=report` makes it again, for an old evaluation, too.
"""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from errors import InputError
from metrics import sample_quality_stage
from report import curves, page
from workdir import load_rounds, write_atomically

Results = dict[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
CURVES = {"training/loss": "training", "held_out/loss": "held-out"}
POINTS = 300  # of a curve, at most
BINS = 40  # of the histogram, at most
ENVIRONMENTS = "environments.json"


def note_environment(folder: Path, mesh: Mesh) -> None:
    """Enters what an evaluation runs with in environments.json, if that does not have it yet."""
    path = folder / ENVIRONMENTS
    kinds = {device.device_kind for device in mesh.devices.flat}
    here = {
        "devices": f"{mesh.size} x {', '.join(sorted(kinds))}",
        "python": platform.python_version(),
    }
    here |= {package: version(package) for package in PACKAGES}
    known = _read(path, [])
    if here not in known:
        write_atomically(
            path, lambda file: file.write(json.dumps([*known, here], indent=2).encode())
        )


def write(workdir: str | Path, eval_folder: str = "eval") -> Path:
    """Writes both files of the report and returns the path of report.html.

    Raises InputError if the folder holds no results.
    """
    folder = Path(workdir) / eval_folder
    data = gather(folder, Path(workdir))
    text = json.dumps(data, indent=2, allow_nan=False)
    write_atomically(folder / "report.json", lambda file: file.write(text.encode()))
    html = page.render(data, folder)
    write_atomically(folder / "report.html", lambda file: file.write(html.encode()))
    return folder / "report.html"


def gather(folder: Path, workdir: Path) -> Results:
    """All that the report tells, as JSON has it: numbers that are not finite are null.

    Keys: name, workdir, checkpoints (a list, see `_checkpoint`), unfinished (folders without results), curves (each
    with steps and values), environments, and config.
    """
    checkpoints = sorted(folder.glob("checkpoint_*"), key=_index)
    finished = [path for path in checkpoints if (path / "results.json").exists()]
    if not finished:
        raise InputError(f"{folder} holds no results of an evaluation; --mode=eval makes them.")
    found = curves.read(workdir / "tensorboard", *CURVES)
    thinned = {CURVES[tag]: curves.thin(curve, POINTS) for tag, curve in found.items()}
    return _finite(
        {
            "name": folder.name,
            "workdir": workdir.resolve().name,
            "checkpoints": [_checkpoint(path) for path in finished],
            "unfinished": [path.name for path in checkpoints if path not in finished],
            "curves": {
                name: {key: v.tolist() for key, v in c._asdict().items()}
                for name, c in thinned.items()
            },
            "environments": _read(folder / ENVIRONMENTS, []),
            "config": _read(folder / "config.json", {}),
        }
    )


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def _finite(tree: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


# --- one checkpoint ---------------------------------------------------------------------------------------------------


def _checkpoint(folder: Path) -> Results:
    """number, results (those of results.json), measures (a list of names, values, standard errors, numbers of images,
    and notes), bpd_histogram, sampling (nfe and speed), and pictures (file names)."""
    results = _finite(_read(folder / "results.json", {}))
    entry = {"number": _index(folder), "results": results}
    entry["bpd_histogram"] = (
        _histogram(folder, results["bpd"]["passes"]) if "bpd" in results else None
    )
    entry["sampling"] = _sampling(folder) if "samples" in results else None
    names = ("samples", "trajectory") if "samples" in results else ()
    entry["pictures"] = [
        f"{folder.name}/{name}.png" for name in names if (folder / f"{name}.png").exists()
    ]
    entry["measures"] = [
        *_of_the_loss(results),
        *_of_the_likelihood(results),
        *_of_the_samples(results),
    ]
    return entry


def _rounds(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}_*.npz"), key=_index)


def _index(path: Path) -> int:
    """The number at the end of a file's or folder's name."""
    return int(path.stem.rsplit("_", 1)[1])


def _histogram(folder: Path, passes: int) -> Results:
    """Of bits/dim over images, each the mean of its passes."""
    values = load_rounds(_rounds(folder, "bpd"), "bpd")["bpd"].reshape(passes, -1).mean(0)
    values = values[np.isfinite(values)]
    edges = np.histogram_bin_edges(values, "auto")
    counts, edges = np.histogram(values, min(BINS, len(edges) - 1))
    return {"counts": counts.tolist(), "edges": edges.tolist(), "mean": float(values.mean())}


def _sampling(folder: Path) -> Results:
    """Network evaluations of an image, and the speed: that of rounds that did not compile, if there are any."""
    rounds = [load_rounds([path], "nfe", "seconds", "first") for path in _rounds(folder, "samples")]
    nfe = np.concatenate([each["nfe"] for each in rounds])
    timed = [each for each in rounds if "seconds" in each]
    warm = [each for each in timed if not each["first"].any()]
    seconds = sum(float(each["seconds"].sum()) for each in warm or timed)
    return {
        "nfe": {"mean": float(nfe.mean()), "least": int(nfe.min()), "most": int(nfe.max())},
        "images_per_second": sum(len(each["nfe"]) for each in warm or timed) / seconds
        if timed
        else None,
        "compilation_included": bool(timed and not warm),
    }


# --- its measures -----------------------------------------------------------------------------------------------------


def _measure(name: str, value: float, stderr: float | None, images: int, note: str = "") -> Results:
    return {"name": name, "value": value, "stderr": stderr, "images": images, "note": note}


def _summary(name: str, summary: Results, note: str = "") -> Results:
    failed = f"{summary['failed']} images failed and are left out" if summary["failed"] else ""
    notes = "; ".join(filter(None, (note, failed)))
    return _measure(name, summary["mean"], summary["stderr"], summary["images"], notes)


def _of_the_loss(results: Results) -> list[Results]:
    if "loss" not in results:
        return []
    return [_summary("held-out loss", results["loss"], "denoising score matching, without dropout")]


def _of_the_likelihood(results: Results) -> list[Results]:
    if "bpd" not in results:
        return []
    bpd = results["bpd"]
    ode = f"probability-flow ODE, {bpd['passes']} pass{'es' if bpd['passes'] > 1 else ''}, {bpd['nfe']:.0f} NFE"
    if bpd["solver_error"] is not None:
        ode += f"; solver's error {bpd['solver_error']:.2g}"
    if bpd["probe_stderr"] is not None:
        ode += f"; part of the standard error due to the probes {bpd['probe_stderr']:.2g}"
    return [
        _summary(f"bits/dim, {bpd['data']} images", bpd, ode),
        _summary(
            f"bits/dim, {bpd['data']} images, bound",
            bpd["bound"],
            "variational: an upper bound in the mean",
        ),
    ]


def _of_the_samples(results: Results) -> list[Results]:
    """The measures of `image_quality`; their names carry the features and the number of images."""
    if "metrics" not in results:
        return []
    found, rows = results["metrics"], []
    notes = {"frechet": f"against {sample_quality_stage.reference_images(found)}"}
    extrapolated = found["frechet"]["extrapolated"]
    if extrapolated is not None:
        notes["frechet"] += f"; {extrapolated:.4g} without the bias that falls as 1/n"
    if found["frechet"]["rank_deficient"]:
        notes["frechet"] += "; fewer images than features, so it is not comparable with others"
    if found["kid"]:
        notes["kid"] = f"blocks of {found['kid']['block']}"
    for metric in sample_quality_stage.METRICS:
        key, name = metric.key, metric.title_in(found)
        if found[key]:
            full = f"{name} ({found['features']}, n = {found['images']})"
            rows.append(
                _measure(
                    full,
                    found[key]["value"],
                    found[key]["stderr"],
                    found["images"],
                    notes.get(key, ""),
                )
            )
    return rows
