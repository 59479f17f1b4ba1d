"""What a compiled program sends between devices and moves in their memory, from its HLO text.

XLA's own estimate ("bytes accessed") adds the operands and results of all operations. On TPUs most
of them are in the on-chip memory (VMEM), to which copies bring them while others are computed, so
that the estimate counts an array several times. `moved_bytes` counts only what is read from or
written to the memory of the device (HBM); or, as an upper limit, what would be without VMEM.
"""

from __future__ import annotations

import math
import re

COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+)[^\n]*\{$\n(.*?)^\}", re.MULTILINE | re.DOTALL)
OPERATION = re.compile(
    r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*?)\)(.*)$", re.MULTILINE
)
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
OPERAND = re.compile(r"%([\w.\-]+)")
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
BODY = re.compile(r"\b(?:body|to_apply|calls)=%([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SCATTER = "all-reduce-scatter"
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
    *("copy-done", "slice-done", "async-done", "after-all"),
}
"""Operations that move nothing."""
TRANSFERS = ("copy-start", "slice-start")
"""Asynchronous copies between memories, whose type lists destination and source."""
LOOPS = ("while", "call", "async-start")
BITCAST = 'custom_call_target="ConcatBitcast"'  # It names the parts of an array that is complete.


def collectives(text: str) -> dict[str, list[int]]:
    """Return the sizes in bytes of the results of all collectives in an HLO module, by kind.

    An all-reduce-scatter of a TPU, of which each device keeps a part, has the size of the whole. An
    asynchronous collective is counted at its end; a TPU's all-gather appears at start and end with
    the same channel, and is counted once. The body of a loop is counted once.
    """
    found: dict[str, list[int]] = {}
    channels = set()
    for name, body in COMPUTATION.findall(text):
        for _, types, operation, _, rest in OPERATION.findall(body):
            kind = operation.removesuffix("-done")
            channel = CHANNEL.search(rest) if kind == "all-gather" else None
            if kind not in KINDS or (channel and channel[1] in channels):
                continue
            if channel:
                channels.add(channel[1])
            if kind == "all-reduce" and name.startswith(SCATTER):
                kind = SCATTER
            found.setdefault(kind, []).extend(size for size, _ in arrays(types))
    return found


def arrays(types: str) -> list[tuple[int, bool]]:
    """Return the bytes of each array in an HLO type, and whether it is in the device's memory.

    Types are such as "(f32[8,2]{1,0:T(8,128)S(1)}, pred[])"; S(1) is the memory of the chip.
    """
    found = []
    for name, shape, layout in ARRAY.findall(types):
        bits = 8 if name == "pred" else int(re.sub(r"\D", "", name))
        size = math.prod(map(int, filter(None, shape.split(",")))) * -(-bits // 8)
        found.append((size, re.search(r"S\(\d+\)", layout) is None))
    return found


def moved_bytes(text: str, *, on_chip: bool = True) -> int:
    """Return the bytes that an optimized HLO module for a TPU moves in the device's memory.

    With `on_chip` False all arrays count as if they were in this memory, and copies between the
    memories do not. The body of a loop counts as often as it runs, if XLA knows that. An operation
    that reads a part of an operand counts all of it, except for asynchronous slices.
    """
    if not on_chip:
        text = re.sub(r"S\(\d+\)", "", text)
    bodies = dict(COMPUTATION.findall(text))
    entry = re.search(r"^ENTRY %([\w.\-]+)", text, re.MULTILINE)
    return _moved(bodies, entry[1], on_chip) if entry else 0


def _moved(bodies: dict[str, str], name: str, on_chip: bool) -> int:
    types: dict[str, str] = {}
    total = 0
    for result, kinds, operation, operands, rest in OPERATION.findall(bodies[name]):
        types[result] = kinds
        if operation in LOOPS and (body := BODY.search(rest)):
            trips = TRIPS.search(rest)
            total += (int(trips[1]) if trips else 1) * _moved(bodies, body[1], on_chip)
        elif operation in TRANSFERS:
            ends = arrays(kinds)[:2]
            total += on_chip * min(size for size, _ in ends) * sum(inside for _, inside in ends)
        elif operation not in (*FREE, *LOOPS) and BITCAST not in rest:
            read = [types.get(operand, "") for operand in OPERAND.findall(operands)]
            total += sum(size for size, inside in arrays(" ".join([kinds, *read])) if inside)
    return total
