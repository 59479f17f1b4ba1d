"""The parts of a claim: measurements of networks with several seeds, and checks of margins.

The margins were committed before the first measurement. A ratio must exceed 1 where something is
better, and `AS_GOOD` where it is at least as good: its distance may be a ninth larger.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.records import Records
from benchmarks.tables import block, header, read_table, row
from errors import InputError
from studies import claims_measured, common
from studies.claims_networks import NETWORKS
from studies.common import FAILS, HOLDS, UNKNOWN, Estimate, combine, log_ratio, verdict

AS_GOOD = 0.9
MISSING = "not measured"
VERDICTS = (HOLDS, FAILS, UNKNOWN, MISSING)


class Sizes(NamedTuple):
    """How much is measured."""

    samples: int = 1000  # images drawn for a distance
    steps: tuple[int, ...] = (50, 250)  # of P and PC; the paper has 1,000, the digits' configs 250
    reference: int = 1000  # steps of the predictor and corrector beside few-step solvers
    long: int = 500  # images drawn for this comparison, by both
    long_elsewhere: int = 200  # the same for other data than digits
    guided: int = 250  # images of classes that are drawn with guidance
    images: int = 100  # held-out images of the other measurements
    zoo: int = 8  # images of measurements with the larger networks of zoo/
    classifier: int = 500  # training steps of the classifier of noised images


TINY = Sizes(12, (2, 3), 2, 12, 12, 12, images=8, zoo=2, classifier=2)


# --- measurements ---------------------------------------------------------------------------------


class Use(NamedTuple):
    """A network of a measurement.

    Attributes:
      name: a key of NETWORKS, or a file of zoo/ such as "zoo/emoji_vp".
      snapshot: the number of its checkpoint; None for the last one.
      shift: how many seeds after that of the measurement its own seed is, in turn.
    """

    name: str
    snapshot: int | None = None
    shift: int = 0


class Measured(list[dict[str, Estimate]]):
    """The results of a measurement for each seed; empty if there are none."""

    def of(self, entry: str) -> list[Estimate]:
        """Return an entry for each seed."""
        return [Estimate(*found[entry]) for found in self]


class Study:
    """Measures networks, which are trained on first use, and records the results in a folder."""

    def __init__(self, folder: Path, seeds: Sequence[int], *, tiny: bool = False) -> None:
        self.folder, self.seeds, self.tiny = folder, seeds, tiny
        self.sizes = TINY if tiny else Sizes()
        self.records = Records(folder / "results.jsonl")

    def measure(
        self, function: Callable[..., Any], *networks: str | Use, **arguments: Any
    ) -> Measured:
        """Return the results of a function of `claims_measured` for each seed.

        Networks of other data than digits have one seed. Without their data nothing is measured.
        """
        uses = [each if isinstance(each, Use) else Use(each) for each in networks]
        repeated = all(use.name in NETWORKS and NETWORKS[use.name].is_repeated for use in uses)
        names, found = " and ".join(use.name for use in uses), Measured()
        for index, seed in enumerate(self.seeds if repeated else self.seeds[:1]):
            about = f"{function.__name__} of {names}, {arguments}, seed {seed}"
            identities = [[self._identity(use, index), use.snapshot] for use in uses]
            parts = [function.__name__, arguments, seed, identities]

            def compute(index: int = index, seed: int = seed, about: str = about) -> dict[str, Any]:
                print(f"measuring {about}", flush=True)
                models = [common.load(self._file(use, index), use.snapshot) for use in uses]
                return {"about": about, "found": function(models, seed, **arguments)}

            try:
                record = self.records.cached(common.key(parts, function.__module__), compute)
            except InputError as error:  # A data set is not installed.
                print(f"  not measured: {error}", flush=True)
                return Measured()
            found.append(record["found"])
        return found

    def _file(self, use: Use, index: int) -> Path:
        """Return the file or workdir of a network; train it first if necessary."""
        if use.name in NETWORKS:
            return common.train(self._config(use, index), self.folder)
        return common.ROOT / f"{use.name}.safetensors"

    def _identity(self, use: Use, index: int) -> str:
        """Return what identifies the parameters of a network: its file, or config and code."""
        if use.name in NETWORKS:
            return common.key(self._config(use, index).to_dict(), "training")
        return hashlib.sha256(self._file(use, index).read_bytes()).hexdigest()

    def _config(self, use: Use, index: int) -> Any:
        seed = self.seeds[(index + use.shift) % len(self.seeds)]
        return NETWORKS[use.name].make_config(seed, tiny=self.tiny)

    def distances(self, name: str, snapshot: int | None = None, **options: Any) -> list[Estimate]:
        """Return distances of samples, by default by the few-step solver with 20 evaluations."""
        few = {"sampler": "dpm++_2m_sde", "schedule": "log_snr", "steps": 20}
        chosen = {**({} if "sampler" in options else few), "count": self.sizes.samples, **options}
        return self.measure(claims_measured.draws, Use(name, snapshot), **chosen).of("distance")


# --- checks ---------------------------------------------------------------------------------------


class Check(NamedTuple):
    """A statement that a number is larger than a margin.

    Attributes:
      text: what is claimed.
      paper: the figures of the paper.
      numbers: the number for each seed, or the logarithm of a ratio; empty if not measured.
      margin: fixed before the measurement; a factor for a ratio.
      is_ratio: whether `numbers` are logarithms, of which the exponential of the mean counts.
      shown: what the page shows beside the number, in the order of the text.
    """

    text: str
    paper: str
    numbers: list[Estimate]
    margin: float
    is_ratio: bool = False
    shown: tuple[list[Estimate], ...] = ()

    def verdict(self, seeds: slice = slice(None)) -> str:
        """Return the verdict from some seeds, by default all."""
        if not self.numbers[seeds]:
            return MISSING
        margin = math.log(self.margin) if self.is_ratio else self.margin
        return verdict(combine(self.numbers[seeds]), margin)

    def cells(self) -> list[str]:
        """Return the row of the page, whose last cell has the verdicts of either half of seeds."""
        start = [self.text, self.paper]
        if not self.numbers:
            return [*start, "", "", f"{self.margin:g}", MISSING, ""]
        middle, found = len(self.numbers) // 2, combine(self.numbers)
        number, shown = str(found), " against ".join(str(combine(each)) for each in self.shown)
        if self.is_ratio:  # The error is relative to first order.
            ratio = math.exp(found.value)
            number = f"ratio {Estimate(ratio, ratio * found.stderr)}"
        both = (self.verdict(slice(middle)), self.verdict(slice(middle, None))) if middle else ()
        return [*start, shown, number, f"{self.margin:g}", self.verdict(), ", ".join(both)]


def smaller(
    text: str, paper: str, subject: list[Estimate], other: list[Estimate], margin: float = 1.0
) -> Check:
    """Return the check that a distance or error is smaller than another one, by a factor."""
    ratios = [log_ratio(b, a) for a, b in zip(subject, other)]
    return Check(text, paper, ratios, margin, True, (subject, other))


def larger(
    text: str, paper: str, subject: list[Estimate], other: list[Estimate], margin: float = 1.0
) -> Check:
    """Return the check that a quantity is larger than another one, by a factor."""
    ratios = [log_ratio(a, b) for a, b in zip(subject, other)]
    return Check(text, paper, ratios, margin, True, (subject, other))


# --- tables ---------------------------------------------------------------------------------------


def table(checks: Sequence[Check]) -> list[str]:
    """Return the table of the checks of a claim."""
    lines = header("claim", "paper", "here", "number", "margin", "verdict", "halves")
    return lines + [row(*check.cells()) for check in checks]


def summary(page: str, titles: Sequence[str]) -> list[str]:
    """Return the table that counts the verdicts of a page, and those that both halves share."""
    found = {
        f"{number}. {title}": read_table(block(page, f"claim {number}"), "claim")
        for number, title in enumerate(titles, 1)
    }
    found["all"] = sum(found.values(), [])
    lines = header("claim", *VERDICTS, "same in both halves", "opposite")
    for title, rows in found.items():
        verdicts = Counter(each["verdict"] for each in rows)
        pairs = [each["halves"].split(", ") for each in rows if each["halves"]]
        same = sum(first == second for first, second in pairs)
        opposite = sum({HOLDS, FAILS} == set(pair) for pair in pairs)
        counts = [str(verdicts[each]) for each in VERDICTS]
        lines.append(row(title, *counts, f"{same} of {len(pairs)}", str(opposite)))
    return lines
