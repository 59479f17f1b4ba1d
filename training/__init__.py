"""Training of the score model: one step in `step.py`, and the loop around it in `loop.py`."""

from training.loop import held_out_losses, last_step, train
from training.step import (
    Metrics,
    Step,
    compile_steps,
    init_state,
    jit_step,
    state_shardings,
    train_step,
)

__all__ = [
    "Metrics",
    "Step",
    "compile_steps",
    "held_out_losses",
    "init_state",
    "jit_step",
    "last_step",
    "state_shardings",
    "train",
    "train_step",
]
