"""A workdir with the files of an evaluation, for tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests import tiny

GUIDANCE = {"kind": "classifier", "classes": [3, 1], "scale": 4.0}
HOSTILE = "<script>alert('&\"')</script>" + "long" * 60


def write_workdir(workdir: Path) -> None:
    """Write two finished checkpoints and an unfinished one; the config contains markup."""
    folder, config = workdir / "eval", tiny.config()
    config.data.dataset = HOSTILE
    (folder / "checkpoint_10").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    environment = {"python": "3.11", "devices": "8 x " + HOSTILE}
    (folder / "environments.json").write_text(json.dumps([environment]))
    for number in (1, 2):
        write_checkpoint(folder / f"checkpoint_{number}", number)
    entries = [{"step": step, "training/loss": 10 / step} for step in range(10, 210, 10)]
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (workdir / "metrics.jsonl").write_text("".join(lines))


def results(number: int) -> dict[str, Any]:
    """The parts of a results.json that the report reads."""
    features = f"({HOSTILE}-1a2b3c4d, n = 12)"
    measures = [
        ("held-out loss", 0.5, 0.0123, 40, "a note"),
        ("bits/dim, test images", 3.0 / number, 0.0123, 40, "1 images failed and are left out"),
        ("bits/dim, test images, bound", 3.5, 0.0123, 40, ""),
        (f"FD_n12 {features}", 8.0 / number, 1.0, 12, "against 99 images"),
        (f"KID {features}", 0.0012, 0.0004, 12, ""),
        (f"precision {features}", 1.0, 0.0, 12, ""),
    ]
    keys = ("name", "value", "stderr", "images", "note")
    bpd = {"images": 40, "mean": 3.0 / number, "solver_error": float("nan")}
    return {
        "step": 100 * number,
        "bpd": bpd | {"histogram": {"counts": [10, 20, 10], "edges": [1.0, 2.0, 3.0, 4.0]}},
        "samples": samples(16) | {"guidance": GUIDANCE},
        "measures": [dict(zip(keys, each)) for each in measures],
    }


def samples(lowest_nfe: int, compiled: bool = False) -> dict[str, Any]:
    """The entry of generated images."""
    found = {"images": 12, "nfe": 17.3, "nfe_range": [lowest_nfe, 20]}
    return found | {"images_per_second": 2.0, "compilation_included": compiled}


def write_checkpoint(folder: Path, number: int) -> None:
    """Write the files of a checkpoint's evaluation."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results(number)))
    Image.new("RGB", (2000, 1000), "red").save(folder / "samples.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "real.png")
    Image.new("L", (64, 32)).save(folder / "trajectory.png")
