"""Reads back the scalars that training logged to TensorBoard, without TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

from readers.tfrecords import FOOTER, HEADER, masked_crc


class Curve(NamedTuple):
    """Values (N,) of a scalar at steps (N,), which increase."""

    steps: np.ndarray
    values: np.ndarray


def read(folder: Path, *tags: str) -> dict[str, Curve]:
    """The curves of those `tags` that the event files in `folder` hold.

    As in TensorBoard, a run that went on from a step replaces what was logged at later ones.
    """
    found: dict[str, dict[int, float]] = {tag: {} for tag in tags}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in _events(path):
            if event.session_log.status == SessionLog.START:
                found = {
                    tag: {k: v for k, v in points.items() if k < event.step}
                    for tag, points in found.items()
                }
            for value in event.summary.value:
                if value.tag in found and value.HasField("simple_value"):
                    found[value.tag][event.step] = value.simple_value
    return {
        tag: Curve(*map(np.array, zip(*sorted(points.items()))))
        for tag, points in found.items()
        if points
    }


def thin(curve: Curve, most: int) -> Curve:
    """At most `most` points, each the mean of as many neighbours; values that are not finite are left out."""
    finite = np.isfinite(curve.values)
    groups = [np.array_split(array[finite], min(most, max(1, finite.sum()))) for array in curve]
    return Curve(*(np.array([group.mean() for group in part if len(group)]) for part in groups))


def _events(path: Path) -> Iterator[Event]:
    """The events of a file up to its end or, if training was killed while it wrote, the first damaged one."""
    with open(path, "rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, crc = HEADER.unpack(header)
            if masked_crc(header[:8]) != crc:
                return
            data, footer = file.read(length), file.read(FOOTER.size)
            if len(footer) < FOOTER.size or masked_crc(data) != FOOTER.unpack(footer)[0]:
                return
            yield Event.FromString(data)
