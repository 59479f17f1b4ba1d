"""Posterior samplers beside exact posteriors of data that are not Gaussian, and other libraries.

python -m studies.posteriors [NAMES ...] [--records=.cache/posteriors.jsonl] [--write]

Prints tables of docs/inverse_problems.md and, with --write, puts them into the page. NAMES are
those of tables and samplers, such as `mixtures draws smc`; only their rows are measured and
replaced. All samplers get the same exact scores of `studies.posterior_cases`, with the VP SDE, or
of `studies.posterior_unseen`.
Results are kept in the records, so that a run resumes. `pip install azula deepinv` installs the
other libraries; without them, only their recorded results are shown.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.records import Record, Records
from benchmarks.tables import block, header, read_table, row, versions
from controllable.methods import METHODS
from errors import InputError
from studies import common, posterior_own, posterior_torch
from studies.posterior_cases import (
    DIGITS,
    MIXTURES,
    SIGNAL_NOISE,
    SIGNALS,
    Problem,
    digits_problem,
    measure,
    mixture_problem,
    signal_problem,
)
from studies.posterior_unseen import CASES, unseen_problem, unseen_table

OPTIONS = {"names": [], "records": ".cache/posteriors.jsonl", "write": False}
SIZES = {"mixtures": (16, 504), "signals": (4, 252), "points": (2, 126), "unseen": (4, 252)}
STEPS = {"guided": 60, "pc": 200}  # The latter also of each DPS; `smc` has its own default.
OWN, EXACT, SMC = "this code", "exact", "this code: `smc`"
PARTICLES = {SMC: 4}  # for each sample
MODULES = {OWN: "studies.posterior_own", EXACT: "studies.posterior_cases"}  # for keys of results
MODULES[posterior_own.DEFAULT] = "studies.posterior_unseen"
OF_DPS = 0.03, 0.1, 0.3  # its step sizes, in the units of each library
SCALES = {OWN: OF_DPS, "azula": OF_DPS, "deepinv": (0.5, 2.0, 10.0)}
Makers = Mapping[str, Callable[[int], Problem]]
"""Functions from a number of measurements to problems, by name."""
MAKERS: dict[str, Makers] = {
    "mixtures": {name: functools.partial(mixture_problem, name) for name in MIXTURES},
    "signals": {
        ", ".join(each): functools.partial(signal_problem, *each)
        for each in (  # Each operator and each distribution of increments once, at least.
            *(("missing", "Gaussian"), ("blur", "Laplace")),
            *(("blur", "Bernoulli-Laplace"), ("Fourier", "Student")),
        )
    },
    "points": {name: functools.partial(digits_problem, name) for name in DIGITS},
    "unseen": {f"unseen {i}": functools.partial(unseen_problem, i) for i in range(CASES)},
}
CELLS = {
    "mixtures": "{weights:.3f} / {mean:.3f}",
    "signals": "{mean:.3f} / {std:.3f} / {coverage:.0f} %",
    "points": "{weights:.3f} / {mean:.3f} / {std:.3f}",
}
EFFECTIVE = "{size:.0f} % ({smallest:.0f} %)"
Results = dict[str, dict[str, Record]]
"""By the title of the sampler and the name of the problem."""

# --- samplers -------------------------------------------------------------------------------------


class Contestant(NamedTuple):
    """A method of a library: OWN, "azula", "deepinv", or EXACT for exact draws."""

    library: str
    method: str

    @property
    def settings(self) -> tuple[int, Sequence[float]]:
        """The number of steps, and the step sizes to choose from; 1 if the method has none."""
        own, is_dps = METHODS.get(self.method), self.method.lower() == "dps"
        kind = "pc" if is_dps or (own and own.requires_pc) else "guided"
        return (own.steps if own else 0) or STEPS[kind], SCALES[self.library] if is_dps else (1.0,)

    def measure(self, make: Callable[[int], Problem], ys: int, count: int) -> Record:
        """Return the errors of `count` samples for each of `ys` measurements, and costs."""
        problem, (steps, scales) = make(ys), self.settings

        def draw(scale: float) -> tuple[np.ndarray, Record]:
            if self.library == EXACT:
                chosen = np.linspace(0, problem.others.shape[1] - 1, count).astype(int)
                return problem.others[:, chosen], {}
            given = self.method, steps, problem, count, scale
            if self.library == OWN:
                return posterior_own.draw(*given)
            return posterior_torch.draw(self.library, *given), {}

        return {"sampler": list(self)} | measure(problem, draw, scales)


ADAPTIVE = [name for name, method in METHODS.items() if method.steps == 1]  # The slowest.
ON_DIGITS = "smc", "moment_matching", "dps", "daps"
DRAWS = Contestant(EXACT, "draws")
FAST = [
    *(DRAWS, *(Contestant(OWN, name) for name in reversed(METHODS) if name not in ADAPTIVE)),
    *(Contestant("azula", method) for method in ("DPS", "PiGDM", "MMPS")),
    *(Contestant("deepinv", method) for method in ("DPS", "PiGDM", "moment matching")),
]
CONTESTANTS = {
    "mixtures": [*FAST, *(Contestant(OWN, name) for name in ADAPTIVE)],
    "signals": FAST,
    "points": [DRAWS, *(Contestant(OWN, name) for name in ON_DIGITS)],
    "unseen": [DRAWS, Contestant(OWN, posterior_own.DEFAULT)],
}


def measure_all(
    records: Records, contestants: Sequence[Contestant], problems: Makers, sizes: tuple[int, int]
) -> Results:
    """Return the results of problems with SIZES; measure what is not in the records.

    Samplers of libraries that are not installed are skipped, unless their results are recorded.
    """
    results: Results = {}
    for each in contestants:
        title, settings = f"{each.library}: `{each.method}`", [sizes, *each, *each.settings]
        module = MODULES.get(each.method) or MODULES.get(each.library, "studies.posterior_torch")
        keys = {name: common.key([name, *settings], module) for name in problems}
        is_missing = each.library not in MODULES and importlib.util.find_spec(each.library) is None
        if is_missing and any(map(records.is_missing, keys.values())):
            print(f"{title} is skipped: {each.library} is not installed.", flush=True)
            continue
        for name, make in problems.items():
            compute = functools.partial(each.measure, make, *sizes)
            results.setdefault(title, {})[name] = records.cached(keys[name], compute)
    return results


# --- tables ---------------------------------------------------------------------------------------


def table(results: Results, columns: Mapping[str, str], cell: str) -> list[str]:
    """Return a table of the errors in a format, and of costs.

    `columns` has the problems by their titles; `errors` explains the numbers.
    """
    lines = header("sampler", "evaluations", "gradients", *columns)
    for title, all_found in results.items():
        found = [all_found[name] for name in columns.values()]
        cells = [
            cell.format(**each) if math.isfinite(each["mean"]) else "not finite" for each in found
        ]
        costs = [_range(found, name) for name in ("evaluations", "gradients")]
        lines.append(row(title, *costs, *cells))
    return [*lines, ""]


def _range(found: Sequence[Record], name: str) -> str:
    values = [each[name] for each in found if name in each] or [0]
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def evidence_table(found: Mapping[str, Record]) -> list[str]:
    """Return the table of log p(y) by `smc`."""
    lines = header(
        *("prior, entries of y, noise", "log p(y): rms error (largest)", "stated error, rms"),
        "effective size, median (smallest)",
    )
    form = row("{}", "{log_rms:.3f} ({log_largest:.2f})", "{stated:.3f}", EFFECTIVE)
    return [*lines, *(form.format(name, **found[name]) for name in MIXTURES)]


def tables(kind: str, found: Results) -> list[str]:
    """Return the tables of a kind of problems."""
    if kind == "unseen":
        return unseen_table(*(list(each.values()) for each in found.values()))
    weighted, lines = found.get(SMC, {}), []
    if kind == "signals":
        about = "; ".join(f"{name}: {title}" for name, title in SIGNALS.items())
        lines = [f"Noise {SIGNAL_NOISE}. {about[0].upper()}{about[1:]}.", ""]
    lines += table(found, {name: name for name in MAKERS[kind]}, CELLS[kind])
    if weighted and kind == "mixtures":
        return lines + evidence_table(weighted)
    if weighted:
        sizes = [EFFECTIVE.format(**each) for each in weighted.values()]
        lines.append(f"Effective sizes of `smc`, median (smallest): {', '.join(sizes)}.")
    return lines


def cost_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return what effective draws cost, from the rows of the table of mixtures.

    The square of the error of the mean of n exact draws is proportional to 1 / n. So its ratio to
    that of as many samples is the number of effective draws for each sample. Costs of a sample are
    the largest ones of the table.
    """
    lines = header(
        *("sampler", "effective draws in 100, median (least)"),
        *("evaluations for an effective draw, median", "gradients"),
    )
    cells = ([each[name].partition(" / ")[2] or "nan" for name in MIXTURES] for each in rows)
    exact, *others = (np.array(each, np.float64) for each in cells)
    for each, errors in zip(rows[1:], others):
        shares = np.square(exact / errors)[np.isfinite(errors)]
        share = np.median(shares)
        costs = (int(each[name].split()[-1]) for name in ("evaluations", "gradients"))
        costs = (cost * PARTICLES.get(each["sampler"], 1) / share for cost in costs)
        found = f"{100 * share:.0f} ({100 * shares.min():.0f})"
        lines.append(row(each["sampler"], found, *(f"{cost:,.0f}" for cost in costs)))
    return lines


def main(options: argparse.Namespace) -> None:
    """Measure what the records lack, and print or write the tables."""
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # Callbacks of scores may block it.
    warnings.simplefilter("ignore")  # Effective sizes are in the tables.
    records, names = Records(options.records), options.names
    methods = (each.method for each in CONTESTANTS["mixtures"])
    possible = [*SIZES, *dict.fromkeys(methods)]
    if unknown := set(names) - set(possible):
        raise InputError(f"{min(unknown)!r} is not one of {', '.join(possible)}. Correct the name.")
    command = " ".join(["python -m studies.posteriors", *names, "--write"])
    installed = versions("jax", "torch", "azula", "deepinv")
    page, blocks = common.ROOT / "docs" / "inverse_problems.md", {}
    for kind in [each for each in SIZES if each in names] or SIZES:
        chosen = [each for each in CONTESTANTS[kind] if each.method in names and kind != "unseen"]
        found = measure_all(records, chosen or CONTESTANTS[kind], MAKERS[kind], SIZES[kind])
        lines = tables(kind, found)
        about = f"{common.provenance(command)} Versions: {installed}."
        if chosen:
            lines = replaced(block(page.read_text(), kind).splitlines()[2:-2], lines)
            about = f"{about} Other rows:"
        blocks[kind] = [about, "", *lines]
        if kind == "mixtures":
            blocks["costs"] = cost_table(read_table("\n".join(lines), "sampler"))
        print("\n".join(blocks[kind]))
    if options.write:
        common.write_blocks(page, blocks)


def replaced(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return the lines of a block with the new rows of its tables.

    Tables have the same header, and rows the same first cell; other rows are added at the end.
    """
    rows, header, lines = {}, "", []
    for line, following in zip(new, [*new[1:], ""]):
        header = line if following.startswith("| ---") else header
        if line.startswith("| ") and line != header and "---" not in line:
            rows[header, line.split(" | ")[0]] = line
    for line, following in zip(old, [*old[1:], ""]):
        header = line if following.startswith("| ---") else header
        lines.append(rows.pop((header, line.split(" | ")[0]), line))
        if line.startswith("|") and not following.startswith("|"):
            lines += [rows.pop(key) for key in [*rows] if key[0] == header]
    return lines


if __name__ == "__main__":
    common.run(main, OPTIONS)
