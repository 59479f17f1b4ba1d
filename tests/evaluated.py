"""A workdir with the files of an evaluation, for tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests import tiny

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
    guidance = {"kind": "classifier", "classes": [3, 1], "scale": 4.0}
    bpd = {"passes": 2, "images": 40, "failed": 1, "solver_error": float("nan")}
    return {
        "step": 100 * number,
        "bpd": bpd,
        "samples": {"images": 12, "nfe": 20.0, "guidance": guidance},
        "measures": [dict(zip(keys, each)) for each in measures],
    }


def write_checkpoint(folder: Path, number: int) -> None:
    """Write the files of a checkpoint's evaluation: two passes of bits/dim, in four rounds."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results(number)))
    first_pass = np.append(np.arange(40) / 40, np.nan)
    both = np.concatenate([first_pass, first_pass + 1])
    for index, bpd in enumerate(np.split(both, (30, 41, 71))):
        np.savez(folder / f"bpd_{index}.npz", bpd=bpd)
    for index, (size, seconds) in enumerate(((8, 100.0), (4, 2.0))):
        times = {"seconds": np.array([seconds]), "first": np.array([index == 0])}
        np.savez(folder / f"samples_{index}.npz", nfe=np.full(size, 16 + 4 * index), **times)
    Image.new("RGB", (2000, 1000), "red").save(folder / "samples.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "real.png")
    Image.new("L", (64, 32)).save(folder / "trajectory.png")
