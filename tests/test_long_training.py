"""Long training: the process does not grow."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import training
from tests import tiny
from training import loop

PROCESS = Path("/proc/self")
COMPILATION = "/jax/core/compile/backend_compile_duration"
STEPS = 5000
# Everything has occurred at least once, and no checkpoint is being written.
FIRST, LAST = 999, 4999
SETTINGS = {
    "model.nf": 4,
    "model.num_scales": 20,
    "training.batch_size": 2,
    "training.n_iters": STEPS,
    "training.log_freq": 50,
    "training.eval_freq": 100,
    "training.snapshot_freq": 500,
    "training.snapshot_freq_for_preemption": 250,
    "training.snapshot_sampling": True,
    "sampling.method": "solver",
    "sampling.num_steps": 2,
}


class Usage(NamedTuple):
    """What a process uses: resident memory in MB, open files, threads, programs compiled so far."""

    memory: float
    files: int
    threads: int
    compiled: int


@pytest.mark.long
@pytest.mark.skipif(not (PROCESS / "statm").exists(), reason="requires the proc file system")
def test_training_does_not_grow(tmp_path, monkeypatch):
    """Between steps 1,000 and 5,000, with checkpoints, samples and held-out losses.

    The margin of memory is 10 KB a step, and the state has 100 KB. A file or thread that each
    checkpoint leaves would add 20 of them. The measured growth is 16 MB, due to the allocator.
    """
    compiled, usage = [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event == COMPILATION else None
    )
    collect = loop.TrainingLog.collect

    def measure(log, step, metrics):
        collect(log, step, metrics)
        if step % 1000 == FIRST:
            gc.collect()
            pages = int((PROCESS / "statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            files, threads = (len(list((PROCESS / name).iterdir())) for name in ("fd", "task"))
            usage[step] = Usage(memory, files, threads, len(compiled))

    monkeypatch.setattr(loop.TrainingLog, "collect", measure)
    training.train(tiny.config(**SETTINGS), str(tmp_path))
    print(usage)  # pytest shows it if the test fails.
    before, after = usage[FIRST], usage[LAST]
    assert after.compiled == before.compiled
    assert after.files <= before.files + 2
    assert after.threads <= before.threads + 4
    assert after.memory < before.memory + 40
