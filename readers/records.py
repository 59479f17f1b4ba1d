"""Records of TFRecord and ArrayRecord files, and the tf.train.Example in them, without TensorFlow.

A record of a TFRecord file consists of its length (8 bytes, little endian), a checksum of the
length, the data, and a checksum of the data. Checksums are masked CRC-32C.
"""

from __future__ import annotations

import array
import functools
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tqdm import tqdm

from readers import cache
from readers.files import OpenFile, check_regular, reading

HEADER = struct.Struct("<QI")  # Length and its checksum.
FOOTER = struct.Struct("<I")  # Checksum of the data.
MAX_RECORD = 2**26  # bytes

# --- TFRecord ---


def masked_crc(data: bytes) -> int:
    """Return TFRecord's checksum: CRC-32C, rotated and shifted so that it can be checksummed."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class TFRecords(Sequence):
    """The records of files, in order, as bytes; every access verifies the checksums.

    The first use reads the files and saves their indices to the cache. Raises InputError, stating
    the position, if a file is damaged.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._files = [OpenFile(path) for path in paths]
        scans = [
            cache.arrays("tfrecord_starts", file.path, functools.partial(_scan, file))["starts"]
            for file in self._files
        ]
        self._starts = np.concatenate(scans)
        self._file = np.repeat(np.arange(len(paths)), list(map(len, scans)))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> bytes:
        return _read(self._files[self._file[index]], int(self._starts[index]))


def _scan(file: OpenFile) -> dict[str, np.ndarray]:
    """Return the positions of all records."""
    starts, position = array.array("q"), 0
    name = f"checking {file.path.name}"
    with tqdm(total=file.size, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while position < file.size:
            starts.append(position)
            length = HEADER.size + len(_read(file, position)) + FOOTER.size
            position += length
            bar.update(length)
    return {"starts": np.array(starts, np.int64)}


def _read(file: OpenFile, start: int) -> bytes:
    """Return the data of the record that begins at byte `start`."""
    with reading(f"{file.path}: the record at byte {start}", "Download the file again."):
        header = file.read(start, HEADER.size)
        length, checksum = HEADER.unpack(header)
        if masked_crc(header[:8]) != checksum or length > MAX_RECORD:
            raise ValueError(f"its length is damaged or more than {MAX_RECORD:,} bytes")
        data = file.read(start + HEADER.size, length)
        footer = file.read(start + HEADER.size + length, FOOTER.size)
        if masked_crc(data) != FOOTER.unpack(footer)[0]:
            raise ValueError("it has a wrong checksum")
        return data


# --- ArrayRecord ---
# A file is a Riegeli file: blocks of 64 KiB, which begin with a header of 24 bytes, and chunks,
# which continue across blocks. A chunk header states the size of its data and of the records in it.

BLOCK, BLOCK_HEADER = 2**16, 24  # bytes
CHUNK = struct.Struct("<QQQQQ")  # hash, size of the data, hash, 256 * records + type, decoded size
MAX_DECODED = 2**26  # bytes of the records of a chunk; TFDS writes one record to a chunk
MAX_RECORDS = 2**20  # of a chunk
AGAIN = "Prepare it again."


class ArrayRecords(Sequence):
    """The records of ArrayRecord files as bytes. Raises InputError where a checksum is wrong."""

    def __init__(self, paths: list[Path]) -> None:
        from array_record.python import array_record_data_source

        self.paths = paths
        for path in paths:
            check_regular(path)
            with reading(path, AGAIN):
                cache.arrays("array_record", path, functools.partial(_check_chunks, path))
        with reading(paths[0].parent, AGAIN):
            names = [str(path) for path in paths]
            self._source = array_record_data_source.ArrayRecordDataSource(names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        with reading(f"{self.paths[0].parent}: record {index}", AGAIN):
            return self._source[index]


def _check_chunks(path: Path) -> dict[str, np.ndarray]:
    """Raise ValueError if a chunk is cut off or expands too much, before the library reads it."""
    position, usable = 0, BLOCK - BLOCK_HEADER
    with open(path, "rb") as file:
        blocks, rest = divmod(os.fstat(file.fileno()).st_size, BLOCK)
        end = blocks * usable + max(0, rest - BLOCK_HEADER)  # Without the headers of blocks.
        while position < end:
            block, offset = divmod(position, usable)
            file.seek(block * BLOCK + BLOCK_HEADER + offset)
            header = file.read(min(CHUNK.size, usable - offset))
            if len(header) < CHUNK.size:
                file.seek(BLOCK_HEADER, os.SEEK_CUR)
                header += file.read(CHUNK.size - len(header))
            _, size, _, records, decoded = CHUNK.unpack(header)
            if decoded > MAX_DECODED or records >> 8 > MAX_RECORDS:
                raise ValueError(f"a chunk states {records >> 8:,} records of {decoded:,} bytes")
            position += max(CHUNK.size + size, records >> 8)  # Padded to a byte for each record.
    return {}


# --- tf.train.Example ---

MAX_INTEGERS = 16  # A label or the shape of an image.
MESSAGES = {  # Of TensorFlow's example.proto and feature.proto: fields, their numbers and types.
    "BytesList": {"values": (1, "bytes")},
    "Int64List": {"values": (1, "int64")},
    "Feature": {"bytes_list": (1, "BytesList"), "int64_list": (3, "Int64List")},
    "Entry": {"key": (1, "string"), "feature": (2, "Feature")},  # of a map
    "Features": {"entries": (1, "Entry")},
    "Example": {"features": (1, "Features")},
}


class Example(NamedTuple):
    """The first value of each feature of bytes, and up to MAX_INTEGERS of integers, by name."""

    data: dict[str, bytes]
    integers: dict[str, list[int]]


@functools.cache
def _message_class() -> Any:
    """Return protobuf's class for tf.train.Example; floats are unknown to it and skipped."""
    field_types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            is_list = field_name in ("values", "entries")
            field.label = field_types.LABEL_REPEATED if is_list else field_types.LABEL_OPTIONAL
            if kind in MESSAGES:
                field.type, field.type_name = field_types.TYPE_MESSAGE, kind
            else:
                field.type = field_types.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))


def parse_example(record: bytes) -> Example:
    """Return the features of a serialized tf.train.Example that are bytes or integers.

    Raises google.protobuf.message.DecodeError if the record is none.
    """
    example = Example({}, {})
    for entry in _message_class().FromString(bytes(record)).features.entries:
        if entry.feature.bytes_list.values:
            example.data[entry.key] = entry.feature.bytes_list.values[0]
        if entry.feature.HasField("int64_list"):
            example.integers[entry.key] = entry.feature.int64_list.values[:MAX_INTEGERS]
    return example
