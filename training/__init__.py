"""Training: the state, the step, the loop around it, and what they train."""

from training.loop import held_out_losses, last_step, train_job
from training.scores import score_job, train
from training.step import Job, compile_steps, jit_step, train_step

__all__ = ["Job", "compile_steps", "held_out_losses", "jit_step", "last_step", "score_job"]
__all__ += ["train", "train_job", "train_step"]
