"""The parts of a claim: measurements of networks with several seeds, and checks of margins.

The margins were committed before the first measurement. A ratio must exceed 1 where something is
better, and `AS_GOOD` where it is at least as good: its distance may be a ninth larger.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.records import Record, Records
from benchmarks.tables import block, header, read_table, row
from errors import InputError
from studies import claims_measured, common
from studies.claims_networks import NETWORKS
from studies.common import FAILS, HOLDS, UNKNOWN, Estimate, combine, log_ratio, verdict

AS_GOOD = 0.9
SAMPLES = 1000  # images drawn for a distance
MISSING = "not measured"
VERDICTS = (HOLDS, FAILS, UNKNOWN, MISSING)
Estimates = list[Estimate]
"""Of each seed; empty if nothing is measured."""


class Study:
    """Measures networks, which are trained on first use, and records the results in a folder."""

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.folder, self.seeds = folder, seeds
        self.records = Records(folder / "results.jsonl")

    def measure(
        self,
        function: Callable[..., Any],
        *names: str,
        snapshot: int | None = None,
        shift: int = 0,
        **arguments: Any,
    ) -> dict[str, Estimates]:
        """Return the results of a function of `claims_measured`, by their names.

        Args:
          function: takes models, a seed and `arguments`.
          names: keys of NETWORKS, or files of zoo/ such as "zoo/emoji_vp". Networks of other data
            than digits have one seed. Without their data nothing is measured.
          snapshot: the number of their checkpoint, by default the last one.
          shift: how many seeds after that of the first network the seed of the second one is.
        """
        repeated = all(name in NETWORKS and NETWORKS[name].is_repeated for name in names)
        found: dict[str, Estimates] = defaultdict(list)
        for index, seed in enumerate(self.seeds if repeated else self.seeds[:1]):
            about = f"{function.__name__} of {' and '.join(names)}, {arguments}, seed {seed}"
            sources = [self._source(name, index + i * shift) for i, name in enumerate(names)]
            identities = [  # of the parameters: the content of a file, or config and code
                hashlib.sha256(each.read_bytes()).hexdigest()
                if isinstance(each, Path)
                else common.key(each.to_dict(), "training")
                for each in sources
            ]
            parts = [function.__name__, arguments, seed, identities, snapshot]

            def compute(sources: Any = sources, seed: int = seed, about: str = about) -> Record:
                print(f"measuring {about}", flush=True)
                train = functools.partial(common.train, folder=self.folder)
                files = [each if isinstance(each, Path) else train(each) for each in sources]
                models = [common.load(each, snapshot) for each in files]
                return {"about": about, "found": function(*models, seed=seed, **arguments)}

            try:
                record = self.records.cached(common.key(parts, function.__module__), compute)
            except InputError as error:  # A data set is not installed.
                print(f"  not measured: {error}", flush=True)
                return defaultdict(list)
            for name, value in record["found"].items():
                found[name].append(Estimate(*value))
        return found

    def _source(self, name: str, index: int) -> Any:
        """Return the config of a network with a seed, in turn, or its file."""
        if name in NETWORKS:
            return NETWORKS[name].make_config(self.seeds[index % len(self.seeds)])
        return common.ROOT / f"{name}.safetensors"

    def distances(self, name: str, snapshot: int | None = None, **options: Any) -> Estimates:
        """Return distances of samples, by default by the few-step solver with 20 evaluations."""
        few = {"sampler": "dpm++_2m_sde", "schedule": "log_snr", "steps": 20}
        chosen = {**({} if "sampler" in options else few), "count": SAMPLES, **options}
        return self.measure(claims_measured.draws, name, snapshot=snapshot, **chosen)["distance"]


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
    numbers: Estimates
    margin: float
    is_ratio: bool = False
    shown: tuple[Estimates, ...] = ()

    def cells(self) -> list[str]:
        """Return the row of the page, whose last cell has the verdicts of either half of seeds."""
        start, margin = [self.text, self.paper], f"{self.margin:g}"
        if not self.numbers:
            return [*start, "", "", margin, MISSING, ""]
        limit = math.log(self.margin) if self.is_ratio else self.margin
        middle, found = len(self.numbers) // 2, combine(self.numbers)
        halves = (self.numbers[:middle], self.numbers[middle:]) if middle else ()
        number, shown = str(found), " against ".join(str(combine(each)) for each in self.shown)
        if self.is_ratio:  # The error is relative to first order.
            ratio = math.exp(found.value)
            number = f"ratio {Estimate(ratio, ratio * found.stderr)}"
        both = ", ".join(verdict(combine(half), limit) for half in halves)
        return [*start, shown, number, margin, verdict(found, limit), both]


def larger(
    text: str, paper: str, subject: Estimates, other: Estimates, margin: float = 1.0
) -> Check:
    """Return the check that a quantity is larger than another one, by a factor."""
    ratios = [log_ratio(a, b) for a, b in zip(subject, other)]
    return Check(text, paper, ratios, margin, True, (subject, other))


def smaller(
    text: str, paper: str, subject: Estimates, other: Estimates, margin: float = 1.0
) -> Check:
    """Return the check that a distance or error is smaller than another one, by a factor."""
    return larger(text, paper, other, subject, margin)._replace(shown=(subject, other))


def table(checks: Sequence[Check]) -> list[str]:
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
