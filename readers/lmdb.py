"""LMDB databases, read without the LMDB library, which ends the process at a damaged file.

A file consists of pages, which form a B+ tree. The layout is that of the structures MDB_page,
MDB_node, MDB_db and MDB_meta in LMDB's mdb.c, as written on 64-bit little-endian machines. Values
have no checksums.
"""

from __future__ import annotations

import array
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from readers import cache
from readers.files import OpenFile, reading

PAGE = struct.Struct("<QHHHH")  # number, unused, flags, end of the list of nodes, unused
NODE = struct.Struct("<HHHH")  # lower and upper half of a number, flags, length of the key
# Magic number, version, size of pages; flags, number of values and root of the tree; transaction.
META = struct.Struct("<II16xI48xH26xQq8xQ")
MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF = 1, 2  # Flags of pages.
IS_BIG = 1  # Flag of a node: its value is on pages of its own.
PAGE_SIZES = tuple(2**power for power in range(8, 17))
MAX_VALUE = 2**26  # bytes


class Lmdb(Sequence):
    """The values of a database in the order of their keys; InputError if the file is damaged."""

    def __init__(self, path: Path) -> None:
        self._file = OpenFile(path)
        with reading(path, "Download it again.", " as LMDB"):
            self._values = cache.arrays("lmdb", path, self._index)["values"]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> bytes:
        return self._file.read(*self._values[index].tolist())

    def _index(self) -> dict[str, np.ndarray]:
        """Return the start and the length in bytes (N, 2) of every value."""
        page_size, entries, root = self._tree()
        values, visited = array.array("q"), set()
        pages = [] if root < 0 else [root]
        while pages:
            number = pages.pop()
            if number in visited:
                raise ValueError(f"page {number} occurs twice")
            visited.add(number)
            pages += self._visit(number, page_size, values)[::-1]
        found = np.array(values, np.int64).reshape(-1, 2)
        if len(found) != entries:
            raise ValueError(f"it has {len(found)} of {entries} values")
        if (found.sum(1) > self._file.size).any() or (found[:, 1] > MAX_VALUE).any():
            raise ValueError(f"a value is cut off, or has more than {MAX_VALUE:,} bytes")
        return {"values": found}

    def _tree(self) -> tuple[int, int, int]:
        """Return page size, number of values and root page of the newer of the two states."""
        states, page_size = {}, 0
        for number in (0, 1):  # The states are on the first two pages.
            fields = META.unpack(self._file.read(number * page_size + PAGE.size, META.size))
            magic, version, size, flags, entries, root, transaction = fields
            page_size = page_size or size
            if (magic, version, flags) != (MAGIC, VERSION, 0) or page_size not in PAGE_SIZES:
                raise ValueError(f"it is no database of version {VERSION}")
            states[transaction] = entries, root
        return page_size, *states[max(states)]

    def _visit(self, number: int, size: int, values: array.array) -> list[int]:
        """Append start and length of the values on a page; return the pages below it, in order."""
        page, children = self._file.read(number * size, size), []
        found, _, flags, end, _ = PAGE.unpack_from(page)
        if found != number or flags not in (BRANCH, LEAF) or not PAGE.size <= end <= size:
            raise ValueError(f"page {number} is not part of the tree")
        for (offset,) in struct.iter_unpack("<H", page[PAGE.size : end]):
            low, high, kind, key = NODE.unpack_from(page, offset)
            start, length = offset + NODE.size + key, low | high << 16
            if flags == BRANCH:
                children.append(length | kind << 32)
            elif kind == IS_BIG:
                (target,) = struct.unpack_from("<Q", page, start)
                values.extend((min(target, 2**40) * size + PAGE.size, length))
            elif not kind and start + length <= size:
                values.extend((number * size + start, length))
            else:
                raise ValueError(f"a value of page {number} is not on it")
        return children
