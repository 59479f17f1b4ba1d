"""Score models in Python: samples, log-densities and posteriors of any score.

    import score_sde as ss

    model = ss.load("demo")                            # a workdir that main.py trained
    x = model.sample(16, seed=0)
    logp, error = model.log_prob(x, return_error=True)
    answers = model.posterior(y, ss.operators.blur(model.event_shape, 1.0), noise=0.05).sample(64)

    prior = ss.Prior(score, ss.VPSDE(), shape=(32, 32))  # any function score(x, t)

docs/python.md describes every call.
"""

import sys
from pathlib import Path

from errors import InputError, NotFiniteError, start_command

if Path(*sys.argv[:1]).stem == "score-sde":  # The command, which imports its package first.
    start_command()  # Before the other imports, which take seconds.

from api import operators
from api.calibration import Calibration
from api.posterior import Posterior
from api.prior import Prior
from api.trained import TrainedModel
from loading import load
from sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE
from training.arrays import train

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "Calibration",
    "CosineSDE",
    "InputError",
    "NotFiniteError",
    "Posterior",
    "Prior",
    "RectifiedFlow",
    "SubVPSDE",
    "TrainedModel",
    "load",
    "operators",
    "train",
]
