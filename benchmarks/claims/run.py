"""Measurement of the claims, with results that are recorded under the keys of config and code."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims import keys
from benchmarks.claims.checks import Claim, Measurement, Quantity
from benchmarks.claims.networks import NETWORKS, Store
from benchmarks.claims.quality import Record
from benchmarks.claims.verdicts import Estimate
from benchmarks.parts import Records
from errors import InputError


class Run:
    """The measurements of some seeds.

    Attributes:
      store: the networks.
      records: the results so far.
      seeds: the seeds of the networks; that of a measurement is also the seed of its samples.
    """

    def __init__(self, store: Store, records: Records, seeds: Sequence[int]) -> None:
        self.store, self.records, self.seeds = store, records, seeds

    def networks(self, chosen: Iterable[Measurement]) -> list[tuple[str, int]]:
        """Return the names and seeds of the networks that measurements need to be trained."""
        used = {
            (use.name, self._seed(index, use.shift))
            for each in chosen
            for index in self.indices(each)
            for use in each.uses
        }
        return [(name, seed) for name in NETWORKS for seed in self.seeds if (name, seed) in used]

    def measure(self, chosen: Iterable[Measurement]) -> None:
        """Measure what is not recorded yet, and print the progress."""
        missing = [
            (each, index)
            for each in chosen
            for index in self.indices(each)
            if self.records.is_missing(self.key(each, index))
        ]
        for number, (each, index) in enumerate(missing, 1):
            about = f"{describe(each)}, seed {self.seeds[index]}"
            print(f"measuring {number} of {len(missing)}: {about}", flush=True)
            try:
                found = each.function(self.models(each, index), self.seeds[index], **each.arguments)
            except InputError as error:  # A data set is not installed.
                print(f"  not measured: {error}", flush=True)
                continue
            self.records.add(self.key(each, index), {"about": about, "found": found})
            values = (f"{name} {value.value:.4g}" for name, value in found.items())
            print(f"  {', '.join(values)}", flush=True)

    def indices(self, measurement: Measurement) -> range:
        """Return the indices of the seeds of a measurement; only digits have more than one."""
        return range(len(self.seeds) if measurement.has_seeds else 1)

    def models(self, measurement: Measurement, index: int) -> list[Any]:
        """Return the models of a measurement."""
        return [
            self.store.load(use.name, self._seed(index, use.shift), use.snapshot)
            for use in measurement.uses
        ]

    def _seed(self, index: int, shift: int) -> int:
        return self.seeds[(index + shift) % len(self.seeds)]

    def key(self, measurement: Measurement, index: int) -> str:
        """Return the key of a result."""
        function = measurement.function
        value = {
            "function": function.__name__,
            "arguments": dict(measurement.arguments),
            "seed": self.seeds[index],
            "networks": [
                [self.store.key(use.name, self._seed(index, use.shift)), use.snapshot]
                for use in measurement.uses
            ],
        }
        module = Path(inspect.getfile(function)).relative_to(keys.ROOT).as_posix()
        return keys.key(value, (*keys.MEASURING, module))

    def halves(self, measurement: Measurement) -> tuple[range, range] | None:
        """Return the indices of either half of the seeds; None if there are fewer than two."""
        indices = self.indices(measurement)
        middle = len(indices) // 2
        return (indices[:middle], indices[middle:]) if middle else None

    def numbers(
        self, quantities: Sequence[Quantity], indices: range | None = None
    ) -> list[list[Estimate]] | None:
        """Return quantities for each seed, or those of `indices`; None if one is not recorded."""
        found = []
        for index in self.indices(quantities[0].measurement) if indices is None else indices:
            seed = [self._recorded(*quantity, index) for quantity in quantities]
            if None in seed:
                return None
            found.append(seed)
        return found

    def _recorded(self, measurement: Measurement, entry: str, index: int) -> Estimate | None:
        key = self.key(measurement, index)
        if self.records.is_missing(key):
            return None
        found: Record = self.records.results[key]["found"]
        return Estimate(*found[entry])


def measurements(claims: Iterable[Claim]) -> list[Measurement]:
    """Return the measurements of all claims, each once."""
    found: list[Measurement] = []
    for claim in claims:
        for check in claim.checks:
            for quantity in check.quantities:
                if quantity.measurement not in found:
                    found.append(quantity.measurement)
    return found


def describe(measurement: Measurement) -> str:
    """Return the function, networks and arguments of a measurement in words."""
    names = " and ".join(use.name for use in measurement.uses)
    arguments = ", ".join(f"{name}={value}" for name, value in measurement.arguments.items())
    return f"{measurement.function.__name__} of {names} ({arguments})"
