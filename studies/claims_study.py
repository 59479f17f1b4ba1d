"""The networks that the claims are measured on, and the rows of docs/claims.md with their verdicts.

All networks have the same optimizer, batch size and width as the configs of the digits, and differ
only in the fields stated here. Those of Appendix H are trained for one snapshot and compared with
the first snapshot of the others. Most are also trained on other data, of which names end with the
data set. The margins were committed before the first measurement, as ratios of distances; since
floors are known, they are ratios of what exceeds the floor.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.records import Record, Records
from benchmarks.tables import block, header, read_table, row
from configs.default import Config, complete
from errors import InputError
from studies import claims_measured, common
from studies.common import FAILS, HOLDS, UNKNOWN, Estimate, combine, holm, judge, judge_ratio
from studies.table1 import SNRS

# --- networks -------------------------------------------------------------------------------------

SNAPSHOT = 400  # steps between the checkpoints that are kept
VP, VE = "vp.digits_ddpmpp_continuous", "ve.digits_ncsnpp_continuous"
WEIGHTED = {"training.likelihood_weighting": True, "training.importance_weighting": True}
DISCRETE = {"training.continuous": False}
DDPM = {"model.resblock_type": "ddpm", "model.skip_rescale": False}
NCSNV2 = {
    "model.name": "ncsnv2_64",
    "model.normalization": "InstanceNorm++",
    "model.nonlinearity": "elu",
    "model.interpolation": "bilinear",
    "model.nf": 9,  # About as many parameters as the others.
    "optim.lr": 1e-3,  # That of NCSN; its successors' published rate is lower still.
}
SIZE = {"data.image_size": 16}  # The images of other data sets are made smaller.
OTHER_DATA = {
    ", Fashion-MNIST": SIZE
    | {"data.dataset": "FASHION_MNIST", "data.num_channels": 1, "model.sigma_max": 12.0},
    ", emoji": SIZE | {"data.dataset": "emoji", "data.num_channels": 3, "model.sigma_max": 18.0},
}
"""Changes for other data sets, by the end of the name. The largest noise level is the distance of
the two images that differ most (Song & Ermon 2020, Technique 1): 11.6 and 17.7 of 3,000 images."""


class Network(NamedTuple):
    """A network of the digits, or of another data set.

    Attributes:
      config: the module of its config, in `configs`.
      changes: the fields that differ from it.
      snapshots: the number of checkpoints, which are SNAPSHOT steps apart.
      is_repeated: whether each seed has its own network, as for the digits; otherwise one has.
    """

    config: str
    changes: Mapping[str, Any] = {}
    snapshots: int = 2
    is_repeated: bool = True

    def make_config(self, seed: int) -> Config:
        """Return the complete config of the network with this seed."""
        config = importlib.import_module(f"configs.{self.config}").get_config()
        config.seed = seed
        frequencies = ("snapshot_freq", "snapshot_freq_for_preemption", "eval_freq")
        config.training.update(dict.fromkeys(frequencies, SNAPSHOT))
        config.training.update(snapshot_sampling=False, log_freq=500)
        config.training.n_iters = self.snapshots * SNAPSHOT
        for name, value in self.changes.items():
            section, _, field = name.partition(".")
            config[section][field] = value
        return complete(config)


NETWORKS = {
    "VP": Network(VP),
    "VE": Network(VE),
    "sub-VP": Network("subvp.digits_ddpmpp_continuous"),
    "likelihood weighting": Network(VP, WEIGHTED),
    "DDPM++ discrete": Network(VP, DISCRETE),
    "DDPM": Network(VP, DISCRETE | DDPM),
    "DDPM continuous": Network(VP, DDPM),
    "NCSN++ discrete": Network(VE, DISCRETE | {"model.embedding_type": "positional"}),
    "NCSNv2": Network(VE, DISCRETE | NCSNV2),
    "EDM": Network("edm.digits_ddpmpp"),
    "rectified flow": Network("flow.digits_ddpmpp"),
    "no FIR filter": Network(VE, {"model.fir": False}, snapshots=1),
    "no rescaled skips": Network(VE, {"model.skip_rescale": False}, snapshots=1),
    "DDPM's blocks": Network(VE, {"model.resblock_type": "ddpm"}, snapshots=1),
    "no progressive input": Network(VE, {"model.progressive_input": "none"}, snapshots=1),
    "twice the blocks": Network(VE, {"model.num_res_blocks": 2}, snapshots=1),
}
"""By name."""

for _name, _network in list(NETWORKS.items()):
    for _data, _fields in OTHER_DATA.items():
        _changes = {**_network.changes, **_fields}
        NETWORKS[_name + _data] = _network._replace(changes=_changes, is_repeated=False)
for _name in ("VP", "likelihood weighting", "sub-VP"):
    NETWORKS[f"{_name}, longer"] = NETWORKS[_name]._replace(snapshots=7)

# --- measurements ---------------------------------------------------------------------------------

SAMPLES, TUNED = 1000, 250  # images drawn for a distance, and for one that chooses an option
Estimates = list[Estimate]
"""Of each seed; empty if nothing is measured."""


class Study:
    """Measures networks, which are trained on first use, and records the results in a folder."""

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.folder, self.seeds = folder, seeds
        self.records = Records(folder / "results.jsonl")
        self.floors: dict[str, float] = {}
        self.tuned: dict[str, float] = {}

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
                if floor := found[name][-1].floor:
                    data = names[0].partition(", ")[2] or names[0].partition("/")[2] or "digits"
                    self.floors[f"{data}, {arguments['count']:,}"] = floor
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

    def tuned_distances(self, name: str, title: str, **options: Any) -> Estimates:
        """Return distances of samples by a corrector with the best of SNRS.

        It is chosen by TUNED samples of the first network and training images, as the paper chose
        it for each cell of its Table 1, and enters `tuned` under the title.
        """
        first, found = type(self)(self.folder, self.seeds[:1]), {}
        for snr in SNRS:
            given = {"snr": snr, "count": TUNED, **options}
            found[snr] = first.measure(claims_measured.tuning, name, **given)["distance"]
        best = min(SNRS, key=found.__getitem__)  # Estimates compare by their values first.
        if found[best]:
            self.tuned[title] = best
        return self.distances(name, snr=best, **options)


# --- rows of the page -----------------------------------------------------------------------------

MISSING = "not measured"
COLUMNS = ("claim", "of", "here [paper]", "number", "verdict, p")
WORDS = (HOLDS, FAILS, UNKNOWN)


class Check(NamedTuple):
    """A statement that a number is larger than a margin, or a first one than a second one.

    Attributes:
      text: what is claimed.
      case: of what, the data at least.
      paper: the figures of the paper.
      first, second: the numbers for each seed; empty if not measured.
      margin: fixed before the measurement; a factor for a ratio.
      is_larger: whether the ratio is first / second; otherwise it is second / first.
      is_weak: whether more than the number of seeds keeps this from being a verdict.
      more: what else the page shows.
    """

    text: str
    case: str
    paper: str
    first: Estimates
    second: Estimates = []
    margin: float = 1.0
    is_larger: bool = True
    is_weak: bool = False
    more: tuple[Estimates, ...] = ()

    def cells(self) -> list[str]:
        """Return the row of the page. What is only suggestive is in parentheses."""
        paper, seeds = f"[{self.paper}]" if self.paper else "", len(self.first)
        if not seeds:
            return [self.text, self.case, paper, "", MISSING]
        shown = self.more
        if self.second:
            shown = (self.first, self.second, *shown)
            upper, lower = shown[:2] if self.is_larger else shown[1::-1]
            number, verdict, p = judge_ratio(upper, lower, self.margin)
        else:
            found = combine(self.first)
            number, verdict, p = found.brief(), *judge(found, self.margin, seeds)
        verdict = f"({verdict})" if self.is_weak or seeds == 1 else f"{verdict}, {p:.2g}"
        here = f"{', '.join(combine(each).brief() for each in shown)} {paper}".strip()
        return [self.text, self.case, here, number, verdict]


larger, smaller = Check, functools.partial(Check, is_larger=False)
"""Checks of two numbers, of which the first is claimed to be larger, or smaller."""


def table(checks: Iterable[Check]) -> list[str]:
    """Return the rows of a claim; a text that is that of the row above is left out."""
    rows = [check.cells() for check in checks]
    above = ["", *(each[0] for each in rows)]
    shown = [[cells[0] * (cells[0] != text), *cells[1:]] for text, cells in zip(above, rows)]
    return [*header(*COLUMNS), *(row(*cells) for cells in shown)]


def summary(page: str, titles: Sequence[str]) -> list[str]:
    """Return the table that counts the verdicts of a page, and those that Holm's correction keeps.

    Those in parentheses are only suggestive, and are not corrected.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    for number, title in enumerate(titles, 1):
        cells = (each["verdict, p"] for each in read_table(block(page, f"claim {number}"), "claim"))
        parts = (each.partition(", ") for each in cells)
        found[f"{number}. {title}"] = [(verdict, float(p or 1)) for verdict, _, p in parts]
    found["all"] = sum(found.values(), [])
    last = holm([p for verdict, p in found["all"] if verdict in WORDS])
    columns = [*WORDS, *(f"({each})" for each in WORDS), MISSING]
    lines = header("claim", *columns, "kept by Holm")
    for title, rows in found.items():
        counts = Counter(verdict for verdict, _ in rows)
        kept = sum(verdict in WORDS and p <= last for verdict, p in rows)
        lines.append(row(title, *(str(counts[each]) for each in columns), str(kept)))
    return lines
