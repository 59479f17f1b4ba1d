"""Posterior samplers beside exact posteriors of data that are not Gaussian, and other libraries.

python -m studies.posteriors [NAMES ...] [--records=.cache/posteriors.jsonl] [--write]

Prints tables of docs/inverse_problems.md and, with --write, puts them into the page. NAMES are
those of tables and samplers, such as `mixtures draws smc`; only their rows are measured and
replaced. All samplers get the same exact scores of `studies.posterior_cases`, with the VP SDE.
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
from benchmarks.tables import block, header, row, versions
from controllable.methods import METHODS
from errors import InputError
from studies import common, posterior_own, posterior_torch
from studies.posterior_cases import (
    MIXTURES,
    SIGNAL_NOISE,
    SIGNALS,
    Problem,
    measure,
    mixture_problem,
    signal_problem,
)

OPTIONS = {"names": [], "records": ".cache/posteriors.jsonl", "write": False}
SIZES = {"mixtures": (16, 504), "signals": (4, 252)}  # measurements, and draws given each
STEPS = {"guided": 60, "pc": 200}  # The latter also of each DPS; `smc` has its own default.
OWN, EXACT, SMC = "this code", "exact", "this code: `smc`"
MODULES = {OWN: "studies.posterior_own", EXACT: "studies.posterior_cases"}  # for keys of results
OF_DPS = 0.03, 0.1, 0.3  # its step sizes, in the units of each library
SCALES = {OWN: OF_DPS, "azula": OF_DPS, "deepinv": (0.5, 2.0, 10.0)}
Makers = Mapping[str, Callable[[], Problem]]
MIXTURE_MAKERS: Makers = {
    name: functools.partial(mixture_problem, name, SIZES["mixtures"][0]) for name in MIXTURES
}
SIGNAL_MAKERS: Makers = {
    ", ".join(each): functools.partial(signal_problem, *each, SIZES["signals"][0])
    for each in (
        *(("missing", "Gaussian"), ("blur", "Laplace")),
        *(("blur", "Bernoulli-Laplace"), ("Fourier", "Student")),
    )
}
"""Each operator and each distribution of increments once, at least."""
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

    def measure(self, make: Callable[[], Problem], count: int) -> Record:
        """Return the errors of `count` samples for each y, and costs."""
        problem, (steps, scales) = make(), self.settings

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
CONTESTANTS = [
    Contestant(EXACT, "draws"),
    *(Contestant(OWN, name) for name in reversed(METHODS) if name not in ADAPTIVE),
    *(Contestant("azula", method) for method in ("DPS", "PiGDM", "MMPS")),
    *(Contestant("deepinv", method) for method in ("DPS", "PiGDM", "moment matching")),
    *(Contestant(OWN, name) for name in ADAPTIVE),
]


def measure_all(
    records: Records, contestants: Sequence[Contestant], problems: Makers, sizes: tuple[int, int]
) -> Results:
    """Return the results of problems with SIZES; measure what is not in the records.

    Samplers of libraries that are not installed are skipped, unless their results are recorded.
    """
    results: Results = {}
    for each in contestants:
        title, settings = f"{each.library}: `{each.method}`", [sizes, *each, *each.settings]
        module = MODULES.get(each.library, "studies.posterior_torch")
        keys = {name: common.key([name, *settings], module) for name in problems}
        is_missing = each.library not in MODULES and importlib.util.find_spec(each.library) is None
        if is_missing and any(map(records.is_missing, keys.values())):
            print(f"{title} is skipped: {each.library} is not installed.", flush=True)
            continue
        for name, make in problems.items():
            compute = functools.partial(each.measure, make, sizes[1])
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


def mixture_tables(records: Records, contestants: Sequence[Contestant]) -> list[str]:
    """Measure mixtures, and return their tables."""
    found = measure_all(records, contestants, MIXTURE_MAKERS, SIZES["mixtures"])
    lines = table(found, {name: name for name in MIXTURES}, "{weights:.3f} / {mean:.3f}")
    return [*lines, *(evidence_table(found[SMC]) if SMC in found else [])]


def signal_table(records: Records, contestants: Sequence[Contestant]) -> list[str]:
    """Measure signals, and return their table with the effective sizes of `smc`."""
    chosen = [each for each in contestants if each.method not in ADAPTIVE]
    found = measure_all(records, chosen, SIGNAL_MAKERS, SIZES["signals"])
    about = "; ".join(f"{name}: {title}" for name, title in SIGNALS.items())
    lines = [f"Noise {SIGNAL_NOISE}. {about[0].upper()}{about[1:]}.", ""]
    columns = {name: name for name in SIGNAL_MAKERS}
    lines += table(found, columns, "{mean:.3f} / {std:.3f} / {coverage:.0f} %")
    if SMC in found:
        sizes = [EFFECTIVE.format(**each) for each in found[SMC].values()]
        lines.append(f"Effective sizes of `smc`, median (smallest): {', '.join(sizes)}.")
    return lines


def main(options: argparse.Namespace) -> None:
    """Measure what the records lack, and print or write the tables."""
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # Callbacks of scores may block it.
    warnings.simplefilter("ignore")  # Effective sizes are in the tables.
    records, names = Records(options.records), options.names
    possible = [*SIZES, *dict.fromkeys(each.method for each in CONTESTANTS)]
    if unknown := set(names) - set(possible):
        raise InputError(f"{min(unknown)!r} is not one of {', '.join(possible)}. Correct the name.")
    contestants = [each for each in CONTESTANTS if each.method in names] or CONTESTANTS
    command = " ".join(["python -m studies.posteriors", *names, "--write"])
    tables = {"mixtures": mixture_tables, "signals": signal_table}
    installed = versions("jax", "torch", "azula", "deepinv")
    page, blocks = common.ROOT / "docs" / "inverse_problems.md", {}
    for kind in [each for each in SIZES if each in names] or SIZES:
        lines = tables[kind](records, contestants)
        about = f"{common.provenance(command)} Versions: {installed}."
        if names:
            lines = replaced(block(page.read_text(), kind).splitlines()[2:-2], lines)
            about = f"{about} Other rows:"
        blocks[kind] = [about, "", *lines]
        print("\n".join(blocks[kind]))
    if options.write:
        common.write_blocks(page, blocks)


def replaced(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return the lines of a block with those rows of tables that are new, by their first cells."""
    rows = {line.split(" | ")[0]: line for line in new if line.startswith("| ")}
    return [line if "---" in line else rows.get(line.split(" | ")[0], line) for line in old]


if __name__ == "__main__":
    common.run(main, OPTIONS)
