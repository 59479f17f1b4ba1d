"""The measures of a checkpoint, the rows of the report's tables.

Since version 0.6, the evaluation writes them to results.json. For folders of version 0.5.1 they are
derived from the other entries; evaluating again adds them, with notes, from the rounds on disk.
"""

from __future__ import annotations

from typing import Any

from readers.files import NUMBER, OPTIONAL_NUMBER

Measure = dict[str, Any]  # name, value, stderr (or None), images, note

ESTIMATE = {"value": OPTIONAL_NUMBER, "stderr": OPTIONAL_NUMBER}
SUMMARY = {"mean": OPTIONAL_NUMBER, "stderr": OPTIONAL_NUMBER, "images": int, "failed": int}
RESULTS = {
    "step": int,
    "loss?": SUMMARY,
    "bpd?": SUMMARY | {"passes": int, "data": str, "bound": SUMMARY},
    "samples?": {"images": int, "guidance?": {"kind": str, "classes": list, "scale": NUMBER}},
    "metrics?": {
        "features": str,
        "images": int,
        "frechet": ESTIMATE | {"name": str, "rank_deficient": bool},
        "kid": (dict, type(None)),
        "inception_score": (dict, type(None)),
        "precision": (dict, type(None)),
        "recall": (dict, type(None)),
    },
    "measures?": [ESTIMATE | {"name": str, "images": int, "note": str}],
}
"""The parts of a results.json that the report reads; see `readers.files.mismatch`."""


def of(results: dict[str, Any]) -> list[Measure]:
    """The measures in a results.json: dicts of name, value, stderr (or null), images and note."""
    if "measures" in results:
        return results["measures"]
    return [*_of_losses(results), *_of_samples(results.get("metrics"))]


def _of_losses(results: dict[str, Any]) -> list[Measure]:
    """Of every entry with a mean and a standard error: the loss, bits/dim and their bound."""
    found = []
    if "loss" in results:
        found.append(("held-out loss", results["loss"]))
    if "bpd" in results:
        name = f"bits/dim, {results['bpd']['data']} images"
        found += [(name, results["bpd"]), (f"{name}, bound", results["bpd"]["bound"])]
    measures = []
    for name, summary in found:
        failed = summary["failed"]
        note = f"{failed} images failed and are excluded" if failed else ""
        measures.append(_measure(name, summary["mean"], summary["stderr"], summary["images"], note))
    return measures


def _of_samples(metrics: dict[str, Any] | None) -> list[Measure]:
    """Of the sample-quality metrics; their names state the features and the number of images."""
    if metrics is None:
        return []
    frechet = metrics["frechet"]
    published = frechet["name"].startswith("FID")
    names = {
        "frechet": frechet["name"],
        "kid": "KID",
        "inception_score": "IS" if published else "class. score",
        "precision": "precision",
        "recall": "recall",
    }
    measures = []
    for key, name in names.items():
        if not metrics[key]:
            continue
        note = ""
        if key == "frechet" and frechet["rank_deficient"]:
            note = "not comparable: fewer images than features"
        full_name = f"{name} ({metrics['features']}, n = {metrics['images']})"
        value, stderr = metrics[key].get("value"), metrics[key].get("stderr")
        measures.append(_measure(full_name, value, stderr, metrics["images"], note))
    return measures


def _measure(name: str, value: float, stderr: float | None, images: int, note: str) -> Measure:
    return {"name": name, "value": value, "stderr": stderr, "images": images, "note": note}
