"""TFRecord files and tf.train.Example, read without TensorFlow.

A record consists of its length (8 bytes, little endian), a checksum of the length, the data, and a
checksum of the data. Checksums are masked CRC-32C.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from tqdm import tqdm

from errors import InputError
from readers import cache
from readers.files import check_regular

HEADER = struct.Struct("<QI")  # Length and its checksum.
FOOTER = struct.Struct("<I")  # Checksum of the data.


def masked_crc(data: bytes) -> int:
    """Return TFRecord's checksum: CRC-32C, rotated and shifted so that it can be checksummed."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecords:
    """The records of a file as bytes; every access verifies the checksums.

    The first use reads the whole file and saves an index to the cache, which is valid until the
    file changes. Raises InputError, stating the record and its position, if the file is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_regular(self.path)
        self._file = os.open(self.path, os.O_RDONLY)
        entry = cache.arrays(
            "tfrecords",
            self.path,
            cache.fingerprint(self.path),
            lambda: {"bounds": self._scan()},
            self._is_index,
        )
        self._bounds = entry["bounds"]

    def _is_index(self, entry: dict[str, np.ndarray]) -> bool:
        """Return whether an entry of the cache has the positions of records in the file."""
        bounds = entry.get("bounds", np.array([]))
        return (
            bounds.dtype == np.int64
            and bounds.ndim == 1
            and len(bounds) > 0
            and bool((np.diff(bounds) > 0).all())
            and (bounds[0], bounds[-1]) == (0, self.path.stat().st_size)
        )

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> bytes:
        start, end = int(self._bounds[index]), int(self._bounds[index + 1])
        return self._data(index, start, os.pread(self._file, end - start, start))

    def _scan(self) -> np.ndarray:
        """Return the positions where the records begin, and the end of the last one."""
        size = self.path.stat().st_size
        starts = [0]
        description = f"checking {self.path.name}"
        with tqdm(total=size, unit="B", unit_scale=True, desc=description, disable=None) as bar:
            while starts[-1] < size:
                index, start = len(starts) - 1, starts[-1]
                header = os.pread(self._file, HEADER.size, start)
                length = self._length(index, start, header)
                rest = os.pread(self._file, length + FOOTER.size, start + HEADER.size)
                self._data(index, start, header + rest)
                starts.append(start + len(header) + len(rest))
                bar.update(len(header) + len(rest))
        return np.array(starts, np.int64)

    def _length(self, index: int, start: int, record: bytes) -> int:
        """Return the length of the data of a record, of which `record` has at least the header."""
        if len(record) < HEADER.size:
            raise self._damaged(index, start, "is cut off")
        length, crc = HEADER.unpack_from(record)
        if masked_crc(record[:8]) != crc:
            raise self._damaged(index, start, "has a wrong checksum of its length")
        if start + HEADER.size + length + FOOTER.size > os.fstat(self._file).st_size:
            raise self._damaged(index, start, "is cut off")
        return length

    def _data(self, index: int, start: int, record: bytes) -> bytes:
        """Return the data of a whole record."""
        end = HEADER.size + self._length(index, start, record)
        if len(record) != end + FOOTER.size:
            raise self._damaged(index, start, "has another length than when the file was indexed")
        data = record[HEADER.size : end]
        if masked_crc(data) != FOOTER.unpack_from(record, end)[0]:
            raise self._damaged(index, start, "has a wrong checksum of its data")
        return data

    def _damaged(self, index: int, start: int, problem: str) -> InputError:
        return InputError(
            f"{self.path} is damaged: record {index}, at byte {start}, {problem}. Download the "
            f"file again."
        )


# --- tf.train.Example ---
# The messages are Example {1: Features}, Features {1: map entries {1: key, 2: Feature}}, Feature
# {1: BytesList, 3: Int64List}, and lists {1: values}: see TensorFlow's example.proto and
# feature.proto, and the encoding of protocol buffers.

BYTES_LIST, INT64_LIST = 1, 3
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5  # Wire types.


def parse_example(record: bytes) -> dict[str, list[Any]]:
    """Return the features of a serialized tf.train.Example that are bytes or integers.

    Raises ValueError if the record is not a tf.train.Example.
    """
    features = {}
    try:
        for _, body in _fields(memoryview(record)):
            for _, entry in _fields(body):
                pair = dict(_fields(entry))
                for kind, values in _fields(pair.get(2, memoryview(b""))):
                    name = bytes(pair[1]).decode()
                    if kind == BYTES_LIST:
                        features[name] = _bytes(values)
                    elif kind == INT64_LIST:
                        features[name] = _integers(values)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("not a tf.train.Example") from error
    return features


def _bytes(values: memoryview) -> list[bytes]:
    return [bytes(value) for _, value in _fields(values)]


def _integers(values: memoryview) -> list[int]:
    numbers = []
    for _, value in _fields(values):
        if isinstance(value, int):
            numbers.append(value)
        else:  # A packed list.
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                numbers.append(number)
    return [number - (number >> 63 << 64) for number in numbers]  # Two's complement.


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a message: varints as int, other types as bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == FIXED64:
            end = position + 8
        elif wire_type == FIXED32:
            end = position + 4
        elif wire_type == LENGTH_DELIMITED:
            length, position = _varint(message, position)
            end = position + length
        else:
            raise ValueError("not a tf.train.Example")
        if end > len(message):
            raise ValueError("not a tf.train.Example")
        yield number, message[position:end]
        position = end


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return the number at a position, encoded in base 128, and the position after it."""
    number = shift = 0
    while True:
        if shift >= 70:  # A number has at most 64 bits, 7 in each byte.
            raise ValueError("not a tf.train.Example")
        byte = data[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
