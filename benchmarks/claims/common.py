"""What claims share: sizes, margins and measurements.

The margins were committed before the first measurement. A ratio must exceed 1 where something is
better, and `AS_GOOD` where it is at least as good: its distance may be a ninth larger.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.claims import densities, quality
from benchmarks.claims.checks import Measurement, Use
from benchmarks.claims.networks import OTHER_DATA

AS_GOOD = 0.9
SNR = {"VE": 0.16, "VP": 0.01, "sub-VP": 0.01}  # of the Langevin corrector after a predictor
DATA = {"VP": "digits", "zoo/fashion_vp": "Fashion-MNIST", "zoo/emoji_vp": "emoji"}
"""The data of networks that are compared on several data sets."""
ALL_DATA = ("", *OTHER_DATA)
"""Ends of the names of networks; that of the digits is empty."""


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
      samples: images drawn for a distance.
      steps: numbers of steps of P and PC, for which the paper has 1,000; the configs of the digits
        have 250.
      reference: steps of the predictor and corrector that few-step solvers are compared with.
      long: images drawn for this comparison, by both.
      long_elsewhere: the same for other data than digits.
      guided: images of classes that are drawn with guidance.
      images: held-out images of the other measurements.
      zoo: images of measurements with the larger networks of zoo/.
      classifier: training steps of the classifier of noised images.
    """

    samples: int = 1000
    steps: tuple[int, ...] = (50, 250)
    reference: int = 1000
    long: int = 500
    long_elsewhere: int = 200
    guided: int = 250
    images: int = 100
    zoo: int = 8
    classifier: int = 500


TINY = Sizes(
    samples=12,
    steps=(2, 3),
    reference=2,
    long=12,
    long_elsewhere=12,
    guided=12,
    images=8,
    zoo=2,
    classifier=2,
)


def few_steps(
    sizes: Sizes, name: str, snapshot: int | None = None, *, count: int | None = None
) -> Measurement:
    """Return samples of a network by the few-step solver with 20 evaluations."""
    options = {"sampler": "dpm++_2m_sde", "schedule": "log_snr", "steps": 20}
    arguments = {"count": count or sizes.samples, **options}
    return Measurement(quality.draws, (Use(name, snapshot),), arguments)


def gain(before: str, after: str, sizes: Sizes) -> Measurement:
    """Return the decrease in bits/dim from one network to another."""
    return Measurement(densities.gain, (Use(before), Use(after)), {"count": sizes.images})
