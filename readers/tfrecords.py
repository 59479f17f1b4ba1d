"""TFRecord files without TensorFlow: records checked by CRC-32C and found by an index, and tf.train.Example.

A record is its length (8 bytes, little endian), a checksum of these, the data, and a checksum of the data.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
from tqdm import tqdm

from errors import InputError
from readers import cache

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C (Castagnoli), rotated and shifted so that it may itself be checksummed."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecords:
    """The records of a file, in order, as bytes; `records[i]` checks what it reads.

    The first use reads the whole file and writes an index to the cache, which holds until the file changes. Raises
    InputError for a file that is damaged or cut off, naming the record and where it begins.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDONLY)
        key = cache.fingerprint(self.path)
        self._bounds = cache.arrays("tfrecords", self.path, key, lambda: {"bounds": self._scan()})[
            "bounds"
        ]

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> bytes:
        start, end = (int(self._bounds[i]) for i in (index, index + 1))
        return self._check(index, start, os.pread(self._file, end - start, start))

    def _scan(self) -> np.ndarray:
        """Where each record begins, and where the last one ends."""
        size, starts = self.path.stat().st_size, [0]
        with tqdm(
            total=size, unit="B", unit_scale=True, desc=f"checking {self.path.name}", disable=None
        ) as bar:
            while (start := starts[-1]) < size:
                header = os.pread(self._file, HEADER.size, start)
                length = self._length(len(starts) - 1, start, header)
                whole = header + os.pread(self._file, length + FOOTER.size, start + HEADER.size)
                self._check(len(starts) - 1, start, whole)
                starts.append(start + len(whole))
                bar.update(len(whole))
        return np.array(starts, np.int64)

    def _length(self, index: int, start: int, record: bytes) -> int:
        if len(record) < HEADER.size:
            raise self._damaged(index, start, "is cut off")
        length, crc = HEADER.unpack_from(record)
        if masked_crc(record[:8]) != crc:
            raise self._damaged(index, start, "has a wrong checksum of its length")
        if start + HEADER.size + length + FOOTER.size > os.fstat(self._file).st_size:
            raise self._damaged(index, start, "is cut off")
        return length

    def _check(self, index: int, start: int, record: bytes) -> bytes:
        end = HEADER.size + self._length(index, start, record)
        if len(record) != end + FOOTER.size:
            raise self._damaged(index, start, "has another length than when the file was indexed")
        data = record[HEADER.size : end]
        if masked_crc(data) != FOOTER.unpack_from(record, end)[0]:
            raise self._damaged(index, start, "has a wrong checksum of its data")
        return data

    def _damaged(self, index: int, start: int, what: str) -> InputError:
        return InputError(
            f"{self.path} is damaged: record {index}, at byte {start}, {what}. Fetch the file again."
        )


# --- tf.train.Example -------------------------------------------------------------------------------------------------
# Example {1: Features}, Features {1: map entries {1: key, 2: Feature}}, Feature {1: BytesList, 3: Int64List}, lists {1:
# values}: see example.proto and feature.proto of TensorFlow, and the encoding of protocol buffers.


def parse_example(record: bytes) -> dict[str, list[bytes] | list[int]]:
    """The features of a serialized tf.train.Example that hold bytes or integers. Raises ValueError if it is none."""
    features = {}
    try:
        for _, body in _fields(memoryview(record)):
            for _, entry in _fields(body):
                pair = dict(_fields(entry))
                for kind, values in _fields(pair.get(2, memoryview(b""))):
                    if kind in (1, 3):
                        features[bytes(pair[1]).decode()] = (
                            _bytes(values) if kind == 1 else _integers(values)
                        )
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("no tf.train.Example") from error
    return features


def _bytes(values: memoryview) -> list[bytes]:
    return [bytes(value) for _, value in _fields(values)]


def _integers(values: memoryview) -> list[int]:
    numbers = []
    for _, value in _fields(values):
        if isinstance(value, int):
            numbers.append(value)
        else:  # packed
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                numbers.append(number)
    return [number - (number >> 63 << 64) for number in numbers]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message: (number, value); all but varints as bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        value, after = _varint(message, position)
        match tag & 7:
            case 0:
                yield tag >> 3, value
                position = after
                continue
            case 1 | 5 as kind:
                start, end = position, position + (8 if kind == 1 else 4)
            case 2:
                start, end = after, after + value
            case _:
                raise ValueError("no tf.train.Example")
        if end > len(message):
            raise ValueError("no tf.train.Example")
        yield tag >> 3, message[start:end]
        position = end


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
