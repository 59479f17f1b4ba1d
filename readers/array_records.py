"""ArrayRecord files, whose chunks are checked before the C++ library of the format expands them.

A file is a Riegeli file: blocks of 64 KiB, which begin with a header of 24 bytes, and chunks, which
continue across blocks. A chunk header states the size of its data and of the records in it.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource

from readers import cache
from readers.files import check_regular, reading

BLOCK, BLOCK_HEADER = 2**16, 24  # bytes
CHUNK = struct.Struct("<QQQQQ")  # hash, size of the data, hash, 256 * records + type, decoded size
MAX_DECODED = 2**26  # bytes of the records of a chunk; TFDS writes one record to a chunk
MAX_RECORDS = 2**20  # of a chunk


class ArrayRecords(Sequence):
    """The records of ArrayRecord files as bytes. Raises InputError where a checksum is wrong."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        for path in paths:
            check_regular(path)
            with reading(path, "Prepare it again."):
                key = cache.fingerprint(path)
                cache.arrays("array_record", path, key, functools.partial(_check_chunks, path))
        with self._reading("ArrayRecord files"):
            self._source = ArrayRecordDataSource([str(path) for path in paths])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        with self._reading(f"record {index}"):
            return self._source[index]

    def _reading(self, part: str) -> AbstractContextManager[None]:
        return reading(f"{self.paths[0].parent}: {part}", "Prepare it again.")


def _check_chunks(path: Path) -> dict:
    """Raise ValueError if a chunk is cut off or expands too much; return nothing to be cached."""
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
            if len(header) < CHUNK.size:
                raise ValueError("it is cut off")
            _, size, _, records, decoded = CHUNK.unpack(header)
            if decoded > MAX_DECODED or records >> 8 > MAX_RECORDS:
                raise ValueError(f"a chunk states {records >> 8:,} records of {decoded:,} bytes")
            position += max(CHUNK.size + size, records >> 8)  # Padded to a byte for each record.
    return {}
