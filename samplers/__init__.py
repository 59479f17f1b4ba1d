"""Samplers by name, built from plain arguments: a loop from noise to samples, and its options.

A sampler is one of the few-step solvers of `solvers.SOLVERS`, the adaptive solver of the reverse
SDE ('adaptive_sde'), the probability-flow ODE with adaptive steps ('ode'), or predictor and
corrector ('pc', Algorithm 1 of arXiv:2011.13456). `make` returns one, and `make_flow` the
probability flow as a map between data and latent codes.
"""

from samplers.entries import ADAPTIVE, kinds
from samplers.making import DEFAULT, MOST_STEPS, Defaults, Flow, make, make_flow
from samplers.results import Sampler, Samples, evaluations

__all__ = [
    "ADAPTIVE",
    "DEFAULT",
    "MOST_STEPS",
    "Defaults",
    "Flow",
    "Sampler",
    "Samples",
    "evaluations",
    "kinds",
    "make",
    "make_flow",
]
