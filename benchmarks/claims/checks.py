"""The parts of a claim: measurements of networks, and checks that compare two numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.claims.networks import NETWORKS
from benchmarks.claims.quality import Record
from benchmarks.claims.verdicts import Estimate, combine, log_ratio


class Use(NamedTuple):
    """A network of a measurement.

    Attributes:
      name: a key of `networks.NETWORKS`, or a file of zoo/.
      snapshot: the number of its checkpoint; None for the last one.
      shift: how many seeds after that of the measurement its own seed is, in turn.
    """

    name: str
    snapshot: int | None = None
    shift: int = 0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A function of networks, their seed and arguments.

    Attributes:
      function: (models, seed, **arguments) -> a `Record`.
      uses: the networks.
      arguments: values that JSON can store.
    """

    function: Callable[..., Record]
    uses: tuple[Use, ...]
    arguments: Mapping[str, Any]

    def __getitem__(self, entry: str) -> Quantity:
        return Quantity(self, entry)

    @property
    def has_seeds(self) -> bool:
        """Whether there are networks with different seeds, unlike files of zoo/."""
        return all(use.name in NETWORKS and NETWORKS[use.name].is_repeated for use in self.uses)


class Quantity(NamedTuple):
    """An entry of the record of a measurement."""

    measurement: Measurement
    entry: str


@dataclasses.dataclass(frozen=True)
class Check:
    """A statement that a number is larger than a margin.

    The number is `quantity`, or with `divisor` the geometric mean over seeds of their ratio.

    Attributes:
      text: what is claimed.
      paper: the figures of the paper.
      quantity, divisor: what is measured.
      margin: fixed before the measurement; a factor for a ratio.
      values: what the page shows beside the number, in the order of the text.
    """

    text: str
    paper: str
    quantity: Quantity
    divisor: Quantity | None = None
    margin: float = 1.0
    values: tuple[Quantity, ...] = ()

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What is measured."""
        return (self.quantity, self.divisor) if self.divisor else (self.quantity,)

    @property
    def threshold(self) -> float:
        """The margin, or for a ratio its logarithm."""
        return math.log(self.margin) if self.divisor else self.margin

    def estimate(self, numbers: Sequence[Sequence[Estimate]]) -> Estimate:
        """Return the number, or the logarithm of the ratio, from the quantities of each seed."""
        if self.divisor:
            return combine([log_ratio(*seed) for seed in numbers])
        return combine([seed[0] for seed in numbers])


def smaller(
    text: str, paper: str, subject: Quantity, other: Quantity, margin: float = 1.0
) -> Check:
    """Return the check that a distance or error is smaller than another one, by a factor."""
    return Check(text, paper, other, subject, margin, (subject, other))


def larger(text: str, paper: str, subject: Quantity, other: Quantity, margin: float = 1.0) -> Check:
    """Return the check that a quantity is larger than another one, by a factor."""
    return Check(text, paper, subject, other, margin, (subject, other))


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
      number, title: as in the page.
      source: its table, figure or equation.
      text: how it is measured.
      checks: its parts.
    """

    number: int
    title: str
    source: str
    text: str
    checks: tuple[Check, ...]
