"""What devices tell each other in a compiled computation, read from its HLO text."""

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
    """Sizes in bytes of the results of all collectives in an HLO module, by kind; kinds that do not occur are left out.

    TPU's all-reduce-scatter, of which each device keeps a part, has the sizes of the whole. Of asynchronous ones the
    end counts; TPU's all-gathers are written out at start and end, with the same channel, and counted once. What stands
    in the body of a loop is counted once.
    """
    found: dict[str, list[int]] = {}
    seen = set()
    names = ["", *COMPUTATION.split(text)]  # Each with what stands in it.
    for name, body in zip(names[::2], names[1::2]):
        for types, kind, rest in OPERATION.findall(body):
            kind = SCATTER if kind == "all-reduce" and name.startswith(SCATTER) else kind
            channel = CHANNEL.search(rest) if kind == "all-gather" else None
            if channel is None or channel[1] not in seen:
                seen.add(channel and channel[1])
                found.setdefault(kind, []).extend(sizes(types))
    return found


def sizes(types: str) -> list[int]:
    """Bytes of each array in an HLO type, as of "(f32[8,2]{1,0}, pred[])"."""
    return [
        math.prod(map(int, filter(None, shape.split(",")))) * _bytes(name)
        for name, shape in ARRAY.findall(types)
    ]


def _bytes(name: str) -> int:
    bits = 8 if name == "pred" else int(re.sub(r"\D", "", name))
    return -(-bits // 8)


def ring_bytes(kind: str, whole: float, devices: int) -> float:
    """Bytes that each device sends when a ring of `devices` does this to arrays of `whole` bytes in all.

    An all-reduce is a reduce-scatter, then an all-gather: 2 (n - 1) / n of the bytes (Patarasuk and Yuan, 2009).
    """
    return (
        {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, SCATTER: 1}[kind]
        * (devices - 1)
        / devices
        * whole
    )
