"""TFRecord files and tf.train.Example, read without TensorFlow.

A record consists of its length (8 bytes, little endian), a checksum of the length, the data, and a
checksum of the data. Checksums are masked CRC-32C.
"""

from __future__ import annotations

import array
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from tqdm import tqdm

from errors import InputError
from readers import cache
from readers.files import check_regular

HEADER = struct.Struct("<QI")  # Length and its checksum.
FOOTER = struct.Struct("<I")  # Checksum of the data.
MAX_RECORD = 2**26  # bytes


def masked_crc(data: bytes) -> int:
    """Return TFRecord's checksum: CRC-32C, rotated and shifted so that it can be checksummed."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecords(Sequence):
    """The records of files, in order, as bytes; every access verifies the checksums.

    The first use reads the files and saves their indices to the cache, which are valid until the
    file changes. Raises InputError, stating the record and its position, if a file is damaged.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._files = [_File(path) for path in paths]
        self._ends = np.cumsum([len(file.bounds) - 1 for file in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, "right"))
        file = self._files[number]
        index -= int(self._ends[number]) - (len(file.bounds) - 1)
        return file.read(index, int(file.bounds[index]))


class _File:
    """A file, with the positions where its records begin and the end of the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_regular(path)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._size = os.fstat(self._file).st_size
        key = cache.fingerprint(path)
        self.bounds = cache.arrays("tfrecords", path, key, self._scan)["bounds"]

    def _scan(self) -> dict[str, np.ndarray]:
        starts = array.array("q", [0])
        name = f"checking {self.path.name}"
        with tqdm(total=self._size, unit="B", unit_scale=True, desc=name, disable=None) as bar:
            while starts[-1] < self._size:
                length = len(self.read(len(starts) - 1, starts[-1])) + HEADER.size + FOOTER.size
                starts.append(starts[-1] + length)
                bar.update(length)
        return {"bounds": np.array(starts, np.int64)}

    def read(self, index: int, start: int) -> bytes:
        """Return the data of the record that begins at byte `start`."""
        header = os.pread(self._file, HEADER.size, start)
        if len(header) < HEADER.size:
            raise self._damaged(index, start, "is cut off")
        length, checksum = HEADER.unpack(header)
        if masked_crc(header[:8]) != checksum:
            raise self._damaged(index, start, "has a wrong checksum of its length")
        if length > MAX_RECORD:
            raise self._damaged(index, start, f"has {length:,} bytes, more than {MAX_RECORD:,}")
        rest = os.pread(self._file, length + FOOTER.size, start + HEADER.size)
        if len(rest) != length + FOOTER.size:
            raise self._damaged(index, start, "is cut off")
        data = rest[:length]
        if masked_crc(data) != FOOTER.unpack_from(rest, length)[0]:
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
VARINT, LENGTH_DELIMITED = 0, 2  # Wire types.
FIXED = {1: 8, 5: 4}  # bytes of a value by wire type
MAX_INTEGERS = 16  # of a feature
MAX_FEATURES = 1000


class Example(NamedTuple):
    """The first value of each feature of bytes, and the features of integers, by name."""

    data: dict[str, memoryview]
    integers: dict[str, list[int]]


def parse_example(record: bytes) -> Example:
    """Return the features of a serialized tf.train.Example that are bytes or integers.

    Raises ValueError if the record is not a tf.train.Example, or has more than MAX_FEATURES or a
    feature of more than MAX_INTEGERS.
    """
    example = Example({}, {})
    for features in _parts(memoryview(record), 1):
        for count, entry in enumerate(_parts(features, 1)):
            if count >= MAX_FEATURES:
                raise ValueError("a tf.train.Example with too many features")
            (key,), (feature,) = _parts(entry, 1), _parts(entry, 2)
            name = str(key, "utf-8")
            for values in _parts(feature, BYTES_LIST):
                value = next(_parts(values, 1), None)
                if value is not None:
                    example.data[name] = value
            for values in _parts(feature, INT64_LIST):
                example.integers[name] = _integers(values)
    return example


def _integers(values: memoryview) -> list[int]:
    numbers = []
    # A packed list has several integers.
    for packed in _parts(values, 1, (VARINT, LENGTH_DELIMITED)):
        position = 0
        while position < len(packed):
            integer, position = _varint(packed, position)
            numbers.append(integer - (integer >> 63 << 64))  # Two's complement.
            if len(numbers) > MAX_INTEGERS:
                raise ValueError("a tf.train.Example with too many integers")
    return numbers


def _parts(
    message: memoryview, number: int, wire_types: Sequence[int] = (LENGTH_DELIMITED,)
) -> Iterator[memoryview]:
    """Yield the encoded values of the fields `number` of a message, all of these wire types."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if wire_type == VARINT:
            _, end = _varint(message, position)
        elif wire_type == LENGTH_DELIMITED:
            length, position = _varint(message, position)
            end = position + length
        else:
            end = position + FIXED.get(wire_type, len(message))
        is_wrong = tag >> 3 == number and wire_type not in wire_types
        if end > len(message) or is_wrong:
            raise ValueError("not a tf.train.Example")
        if tag >> 3 == number:
            yield message[position:end]
        position = end


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return the number at a position, encoded in base 128, and the position after it."""
    number = 0
    for shift, byte in enumerate(data[position : position + 10]):
        number |= (byte & 127) << 7 * shift
        if byte < 128 and number < 2**64:
            return number, position + shift + 1
    raise ValueError("not a tf.train.Example")
