"""Posterior samplers beside exact posteriors of data that are not Gaussian, and other libraries.

python -m studies.posteriors [NAMES ...] [--records=.cache/posteriors.jsonl] [--write]

Prints tables of docs/inverse_problems.md and, with --write, puts them into the page. NAMES are
those of tables and samplers, such as `mixtures draws smc`; only their rows are measured and
replaced. All samplers get the same exact scores of `studies.posterior_cases`, with the VP SDE, or
of `studies.posterior_unseen`.
Results are kept in the records, so that a run resumes. `pip install azula deepinv` installs the
other libraries; without them, only their recorded results are shown. Galaxies need galaxygrad.
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
    DIGITS,
    MIXTURES,
    Problem,
    digits_problem,
    measure,
    mixture_problem,
    signal_problem,
)
from studies.posterior_galaxies import GALAXIES, galaxies_problem
from studies.posterior_unseen import AGAIN, CASES, NEW, UNEVEN, unseen_problem, unseen_table, within

OPTIONS = {"names": [], "records": ".cache/posteriors.jsonl", "write": False}
OWN, EXACT, SMC = "this code", "exact", "this code: `smc`"
MODULES = {OWN: "studies.posterior_own", EXACT: "studies.posterior_cases"}  # for keys of results
OF_DPS = 0.03, 0.1, 0.3  # its step sizes, in the units of each library
SCALES = {OWN: OF_DPS, "azula": OF_DPS, "deepinv": (0.5, 2.0, 10.0)}
Makers = Mapping[str, functools.partial[Problem]]
"""Functions from a number of measurements to problems, by name."""
EFFECTIVE = "{size:.0f} % ({smallest:.0f} %)"
Results = dict[str, dict[str, Record]]
"""By the title of the sampler and the name of the problem."""

# --- samplers -------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A table: problems by their names are its columns, and samplers its rows.

    Attributes:
      ys, count: numbers of measurements, and of samples of each.
      guided, pc: steps of guided scores, and of 'pc' and DPS. `smc` has its own default.
    """

    problems: Makers
    samplers: Sequence[Contestant]
    ys: int
    count: int
    cell: str = "{mean:.3f} / {std:.3f} / {coverage:.0f} %"
    guided: int = 60
    pc: int = 200


class Contestant(NamedTuple):
    """A method of a library: OWN, "azula", "deepinv", or EXACT for exact draws."""

    library: str
    method: str

    def settings(self, kind: Kind) -> tuple[int, Sequence[float]]:
        """Return the number of steps, and step sizes to choose from; 1 if the method has none."""
        own, is_dps = METHODS.get(self.method), self.method.lower() == "dps"
        steps = kind.pc if is_dps or (own and own.requires_pc) else kind.guided
        return (own.steps if own else 0) or steps, SCALES[self.library] if is_dps else (1.0,)

    def measure(self, make: Callable[[int], Problem], kind: Kind) -> Record:
        """Return the errors of samples for each measurement, and costs."""
        problem, (steps, scales) = make(kind.ys), self.settings(kind)

        def draw(scale: float) -> tuple[np.ndarray, Record]:
            if self.library == EXACT:
                chosen = np.linspace(0, problem.others.shape[1] - 1, kind.count).astype(int)
                return problem.others[:, chosen], {}
            given = self.method, steps, problem, kind.count, scale
            if self.library == OWN:
                return posterior_own.draw(*given)
            return posterior_torch.draw(self.library, *given), {}

        return {"sampler": list(self)} | measure(problem, draw, scales)


OF_MODES = "{weights:.3f} / {mean:.3f}"
DRAWS, DEFAULT = Contestant(EXACT, "draws"), Contestant(OWN, posterior_own.DEFAULT)
ADAPTIVE = [Contestant(OWN, name) for name, method in METHODS.items() if method.steps == 1]
FAST = [
    *(DRAWS, *(Contestant(OWN, name) for name in reversed(METHODS))),
    *(Contestant("azula", method) for method in ("DPS", "PiGDM", "MMPS")),
    *(Contestant("deepinv", method) for method in ("DPS", "PiGDM", "moment matching")),
]
FAST = [each for each in FAST if each not in ADAPTIVE]
ON_DIGITS = [Contestant(OWN, name) for name in ("smc", "moment_matching", "dps", "daps")]
TOO_SLOW = "smc", "dps", "daps", "projection"  # for galaxies; "smc" has a limit of entries
OF_SIGNALS = [  # Each operator and each distribution of increments once, at least.
    *(("missing", "Gaussian"), ("blur", "Laplace")),
    *(("blur", "Bernoulli-Laplace"), ("Fourier", "Student")),
]
KINDS = {
    "galaxies": Kind(
        {name: functools.partial(galaxies_problem, name) for name in GALAXIES},
        [each for each in FAST if each.method.lower() not in TOO_SLOW],
        *(6, 12),
        guided=20,
    ),
    "mixtures": Kind(
        {name: functools.partial(mixture_problem, name) for name in MIXTURES},
        *([*FAST, *ADAPTIVE], 16, 504, OF_MODES),
    ),
    "signals": Kind(
        {", ".join(each): functools.partial(signal_problem, *each) for each in OF_SIGNALS},
        *(FAST, 4, 252),
    ),
    "weights": Kind(
        {
            ", ".join(each): functools.partial(signal_problem, *each, sweeps=100)
            for each in OF_SIGNALS
        },
        *([DRAWS, *ADAPTIVE], 1, 32),
    ),
    "points": Kind(
        {name: functools.partial(digits_problem, name) for name in DIGITS},
        *([DRAWS, *ON_DIGITS], 2, 126, "{weights:.3f} / {mean:.3f} / {std:.3f}"),
    ),
    "unseen": Kind(
        {f"unseen {i}": functools.partial(unseen_problem, i) for i in range(CASES)},
        *([DRAWS, DEFAULT], 4, 252),
    ),
    "evidence": Kind(
        {f"case {i}": functools.partial(unseen_problem, i) for i in (*UNEVEN, *NEW)},
        *([Contestant(OWN, posterior_own.EVIDENCE)], 4, 252),
    ),
    "again": Kind(
        {f"case {i}": functools.partial(unseen_problem, i, draws=8192) for i in AGAIN},
        *([DRAWS, DEFAULT], 4, 1512, OF_MODES),
    ),
}
"""By the names of blocks on the page."""


def measure_all(records: Records, kind: Kind) -> Results:
    """Return the results of a table; measure what is not in the records.

    Samplers of libraries that are not installed are skipped, unless their results are recorded.
    """
    results: Results = {}
    sizes = [kind.ys, kind.count, kind.guided, kind.pc]
    for each in kind.samplers:
        title, settings = f"{each.library}: `{each.method}`", [sizes, *each, *each.settings(kind)]
        module = MODULES.get(each.library, "studies.posterior_torch")
        keys = {
            name: common.key([name, *settings, common.key([], make.func.__module__)], module)
            for name, make in kind.problems.items()
        }
        is_missing = each.library not in MODULES and importlib.util.find_spec(each.library) is None
        if is_missing and any(map(records.is_missing, keys.values())):
            print(f"{title} is skipped: {each.library} is not installed.", flush=True)
            continue
        for name, make in kind.problems.items():
            compute = functools.partial(each.measure, make, kind)
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
    return [*lines, *(form.format(name, **found[name]) for name in found)]


def tables(kind: str, found: Results) -> list[str]:
    """Return the tables of a kind of problems."""
    if kind == "unseen":
        return unseen_table(*(list(each.values()) for each in found.values()))
    if kind == "evidence":
        (cases,) = found.values()
        return [*evidence_table(cases), "", f"In all: {within([*cases.values()])}."]
    lines = table(found, {name: name for name in KINDS[kind].problems}, KINDS[kind].cell)
    if kind == "mixtures":
        return lines + (evidence_table(found[SMC]) if SMC in found else [])
    for title, each in found.items():
        if all("size" in record for record in each.values()):
            sizes = ", ".join(EFFECTIVE.format(**record) for record in each.values())
            lines.append(f"Effective sizes of {title}, median (smallest): {sizes}.")
    return lines


def main(options: argparse.Namespace) -> None:
    """Measure what the records lack, and print or write the tables."""
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # Callbacks of scores may block it.
    warnings.simplefilter("ignore")  # Effective sizes are in the tables.
    records, names = Records(options.records), options.names
    methods = (each.method for each in KINDS["mixtures"].samplers)
    possible = [*KINDS, *dict.fromkeys(methods)]
    if unknown := set(names) - set(possible):
        raise InputError(f"{min(unknown)!r} is not one of {', '.join(possible)}. Correct the name.")
    command = " ".join(["python -m studies.posteriors", *names, "--write"])
    installed = versions("jax", "torch", "azula", "deepinv")
    page, blocks = common.ROOT / "docs" / "inverse_problems.md", {}
    for name in [each for each in KINDS if each in names] or KINDS:
        kind = KINDS[name]
        chosen = [
            each for each in kind.samplers if each.method in names and DEFAULT not in kind.samplers
        ]
        found = measure_all(records, kind._replace(samplers=chosen or kind.samplers))
        lines = tables(name, found)
        about = f"{common.provenance(command)} Versions: {installed}."
        if chosen:
            lines = replaced(block(page.read_text(), name).splitlines()[2:-2], lines)
            about = f"{about} Other rows:"
        blocks[name] = [about, "", *lines]
        print("\n".join(blocks[name]))
    if options.write:
        common.write_blocks(page, blocks)


def replaced(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return the lines of a block with the new rows of its tables.

    Tables have the same header, and rows the same first cell; other rows are added at the end.
    """
    rows, lines = {key: line for key, line in _keyed(new) if key[1]}, []
    for (key, line), following in zip(_keyed(old), [*old[1:], ""]):
        lines.append(rows.pop(key, line))
        if line.startswith("|") and not following.startswith("|"):
            lines += [rows.pop(other) for other in [*rows] if other[0] == key[0]]
    return lines


def _keyed(lines: Sequence[str]) -> list[tuple[tuple[str, str], str]]:
    """Return lines, with the header of their table and their first cell, if they are rows."""
    head, found = "", []
    for line, following in zip(lines, [*lines[1:], ""]):
        head = line if following.startswith("| ---") else head
        found.append(((head, line.split(" | ")[0] if line.startswith("| ") else ""), line))
    return found


if __name__ == "__main__":
    common.run(main, OPTIONS)
