"""What a compiled program sends between devices, from its HLO text."""

from __future__ import annotations

import math
import re

COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+)[^\n]*\{$\n(.*?)^\}", re.MULTILINE | re.DOTALL)
OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z][\w\-]*)\(.*?\)(.*)$", re.MULTILINE)
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")
CHANNEL = re.compile(r"\bchannel_id=(\d+)")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SCATTER = "all-reduce-scatter"


def collectives(text: str) -> dict[str, list[int]]:
    """Return the sizes in bytes of the results of all collectives in an HLO module, by kind.

    An asynchronous collective is counted at its end, a TPU's all-gather once for its channel, and
    the body of a loop once. An all-reduce-scatter of a TPU has the size of the whole.
    """
    found: dict[str, list[int]] = {}
    channels = set()
    for name, body in COMPUTATION.findall(text):
        for types, operation, rest in OPERATION.findall(body):
            kind = operation.removesuffix("-done")
            channel = CHANNEL.search(rest) if kind == "all-gather" else None
            if kind not in KINDS or (channel and channel[1] in channels):
                continue
            if channel:
                channels.add(channel[1])
            if kind == "all-reduce" and name.startswith(SCATTER):
                kind = SCATTER
            found.setdefault(kind, []).extend(sizes(types))
    return found


def sizes(types: str) -> list[int]:
    """Return the bytes of each array in an HLO type, such as "(f32[8,2]{1,0}, pred[])"."""
    found = []
    for name, shape in ARRAY.findall(types):
        bits = 8 if name == "pred" else int(re.sub(r"\D", "", name))
        found.append(math.prod(map(int, filter(None, shape.split(",")))) * -(-bits // 8))
    return found
