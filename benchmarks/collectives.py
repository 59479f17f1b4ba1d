"""Communication between devices in a compiled computation, read from its HLO text."""

from __future__ import annotations

import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SCATTER = "all-reduce-scatter"
COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w-]+)[^\n]*\{$", re.MULTILINE)
OPERATION = re.compile(
    rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)})(?:-done)?\((.*)$", re.MULTILINE
)
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")


def collectives(text: str) -> dict[str, list[int]]:
    """Return the sizes in bytes of the results of all collectives in an HLO module, by kind.

    Kinds that do not occur are omitted. An all-reduce-scatter of a TPU, of which each device keeps
    a part, has the size of the whole. An asynchronous collective is counted at its end; a TPU's
    all-gather appears at start and end with the same channel, and is counted once. The body of a
    loop is counted once.
    """
    found: dict[str, list[int]] = {}
    channels = set()
    parts = ["", *COMPUTATION.split(text)]  # alternating names and bodies of computations
    for name, body in zip(parts[::2], parts[1::2]):
        for types, kind, rest in OPERATION.findall(body):
            if kind == "all-reduce" and name.startswith(SCATTER):
                kind = SCATTER
            channel = CHANNEL.search(rest) if kind == "all-gather" else None
            if channel and channel[1] in channels:
                continue
            if channel:
                channels.add(channel[1])
            found.setdefault(kind, []).extend(array_bytes(types))
    return found


def array_bytes(types: str) -> list[int]:
    """Return the bytes of each array in an HLO type, such as "(f32[8,2]{1,0}, pred[])"."""
    return [
        math.prod(map(int, filter(None, shape.split(",")))) * _bytes(name)
        for name, shape in ARRAY.findall(types)
    ]


def _bytes(name: str) -> int:
    bits = 8 if name == "pred" else int(re.sub(r"\D", "", name))
    return -(-bits // 8)
