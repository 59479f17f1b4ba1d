"""Bytes that a compiled TPU program moves in the memory of its device, read from its HLO text.

XLA's estimate ("bytes accessed") adds the operands and results of all operations. On TPUs most of
them are in the on-chip memory (VMEM), to which copies bring them while others are computed, so that
the estimate counts an array several times. Here only what is read from or written to the memory of
the device (HBM) counts; or, as an upper limit, what would be without an on-chip memory.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.collectives import array_bytes

COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) [^\n]*\{$\n(.*?)^\}", re.MULTILINE | re.DOTALL)
OPERATION = re.compile(
    r"^\s+(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*?)\)(.*)$", re.MULTILINE
)
ARRAY = re.compile(r"\b(?:pred|[a-z]+\d+)\w*\[[\d,]*\](?:\{[^}]*\})?")
OPERAND = re.compile(r"%([\w.\-]+)")
SPACE = re.compile(r"S\(\d+\)")  # An array without it is in the memory of the device.
NAME = re.compile(r'op_name="([^"]*)"')
BODY = re.compile(r"\b(?:body|to_apply|calls)=%([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
    *("copy-done", "slice-done", "async-done", "after-all"),
}
"""Operations that move nothing."""
TRANSFERS = ("copy-start", "slice-start")
"""Asynchronous copies between memories, whose type lists destination and source."""
LOOPS = ("while", "call", "async-start")
BITCAST = 'custom_call_target="ConcatBitcast"'  # It names the parts of an array that is complete.


class Movement(NamedTuple):
    """What one operation moves.

    Attributes:
      operation: its kind, such as "fusion".
      source: the JAX operation that it comes from, such as "transpose(jvp())/dot_general", or ''.
      bytes: read from and written to the memory of the device.
    """

    operation: str
    source: str
    bytes: int


def movements(text: str, *, on_chip: bool = True) -> list[Movement]:
    """Return what each operation of an optimized HLO module moves, most first.

    With `on_chip` False all arrays count as if they were in the memory of the device, and copies
    between the memories do not.

    The body of a loop counts as often as it runs, where XLA knows that number, else once. An
    operation that reads a part of an operand counts all of it, except for asynchronous slices.
    """
    if not on_chip:
        text = SPACE.sub("", text)
    bodies = {name: body for _, name, body in COMPUTATION.findall(text)}
    entry = next(name for is_entry, name, _ in COMPUTATION.findall(text) if is_entry)
    found = list(_movements(bodies, entry, 1))
    if not on_chip:
        found = [movement for movement in found if movement.operation not in TRANSFERS]
    return sorted(found, key=lambda movement: -movement.bytes)


def moved_bytes(text: str, *, on_chip: bool = True) -> int:
    """Return the bytes that an optimized HLO module moves; see `movements`."""
    return total(movements(text, on_chip=on_chip))


def total(found: Iterable[Movement]) -> int:
    """Return the bytes of all movements."""
    return sum(movement.bytes for movement in found)


def by_source(found: Iterable[Movement]) -> list[tuple[str, int]]:
    """Return the bytes of each JAX operation, without its scopes, most first."""
    moved: Counter[str] = Counter()
    for movement in found:
        phase = "backward" if "transpose(" in movement.source else "forward"
        if "jvp(" not in movement.source:
            phase = "other"
        name = movement.source.rpartition("/")[2] or movement.operation
        moved[f"{phase}: {name}"] += movement.bytes
    return moved.most_common()


def _movements(bodies: dict[str, str], name: str, times: int) -> Iterable[Movement]:
    """Yield the movements of a computation that runs `times` times."""
    types: dict[str, str] = {}
    for result, kinds, operation, operands, rest in OPERATION.findall(bodies[name]):
        types[result] = kinds
        if operation in FREE or BITCAST in rest:
            continue
        if operation in LOOPS:
            trips = TRIPS.search(rest)
            body = BODY.search(rest)
            if body:
                yield from _movements(bodies, body[1], times * int(trips[1]) if trips else times)
            continue
        source = NAME.search(rest)
        if operation in TRANSFERS:
            size = _transferred(kinds)
        else:
            read = [types.get(operand, "") for operand in OPERAND.findall(operands)]
            size = sum(map(_device_bytes, [kinds, *read]))
        if size:
            yield Movement(operation, source[1] if source else "", times * size)


def _device_bytes(types: str) -> int:
    """Return the bytes of those arrays of a type that are in the memory of the device."""
    found = [kind for kind in ARRAY.findall(types) if not SPACE.search(kind)]
    return sum(array_bytes(" ".join(found)))


def _transferred(types: str) -> int:
    """Return the bytes that a transfer moves at those of its two ends that are in this memory."""
    ends = ARRAY.findall(types)[:2]
    size = min(math.inf, *(sum(array_bytes(end)) for end in ends))
    return int(size) * sum(not SPACE.search(end) for end in ends)
