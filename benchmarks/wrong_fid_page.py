"""The tables of `benchmarks.wrong_fid` in docs/reproduce.md."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from benchmarks import parts
from benchmarks.markdown import header, machine, row
from benchmarks.wrong_fid_causes import CAUSES, ELSEWHERE, TRAINED, Cause

MARGIN = 0.1  # of the distance without the cause


def verdict(record: parts.Record) -> str:
    """Return what the difference means, given MARGIN and two standard errors."""
    margin, error = MARGIN * record["right"], 2 * record["stderr"]
    if record["difference"] - error > margin:
        return "higher"
    if record["difference"] + error < -margin:
        return "lower"
    if abs(record["difference"]) + error < margin:
        return "the same"
    return "not decided"


def tables(
    found: Sequence[parts.Record], numbers: Sequence[parts.Record], causes: Sequence[Cause] = CAUSES
) -> str:
    """Return the tables of the records of the causes, and of the numbers of samples."""
    lines = []
    pairs = zip(causes, found, strict=True)
    for group, members in itertools.groupby(pairs, lambda pair: pair[0].group):
        lines += [f"### {group}", "", *_table(members), ""]
    lines += ["### Number of samples", "", *_numbers(numbers), ""]
    return "\n".join([*lines, f"Measured on {machine()}."])


def _table(pairs: Iterable[tuple[Cause, parts.Record]]) -> list[str]:
    lines = header(
        *("cause", "network", "sampler", "samples", "FD with it", "without", "difference"),
        *("FD is", "published elsewhere"),
    )
    for cause, record in pairs:
        right = cause.right
        network = "digits, trained" if right.network == TRAINED else f"`{right.network}`"
        sampler = dict(right.fields).get("sampling.method", "solver")
        lines.append(
            row(
                *(cause.name, network, sampler, f"{right.count:,}"),
                *(f"{record['wrong']:.3f}", f"{record['right']:.3f}"),
                f"{record['difference']:+.3f} +- {record['stderr']:.3f}",
                *(verdict(record), ELSEWHERE.get(cause.name, "")),
            )
        )
    return lines


def _numbers(records: Sequence[parts.Record]) -> list[str]:
    lines = header("network", "samples", "sets", "FD")
    for record in records:
        error = "" if record["stderr"] is None else f" +- {record['stderr']:.3f}"
        cells = f"`{record['network']}`", f"{record['number']:,}", str(record["sets"])
        lines.append(row(*cells, f"{record['value']:.3f}{error}"))
    return lines
