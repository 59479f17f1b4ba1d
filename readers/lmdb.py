"""LMDB databases, read without the LMDB library, which ends the process at a damaged file.

A file consists of pages, which form a B+ tree. The layout is that of the structures MDB_page,
MDB_node, MDB_db and MDB_meta in LMDB's mdb.c, as written on 64-bit little-endian machines. Values
have no checksums.
"""

from __future__ import annotations

import array
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from errors import InputError
from readers import cache
from readers.files import check_regular

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
        self.path = path
        check_regular(path)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._size = os.fstat(self._file).st_size
        key = cache.fingerprint(path)
        self._values = cache.arrays("lmdb", path, key, self._index)["values"]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> bytes:
        return self._read(*self._values[index].tolist())

    def _index(self) -> dict[str, np.ndarray]:
        """Return the start and the length in bytes (N, 2) of every value."""
        page_size, entries, root = self._tree()
        values, visited = array.array("q"), set()
        pages = [] if root < 0 else [root]
        while pages:
            number = pages.pop()
            if number in visited:
                raise self._damaged(f"page {number} occurs twice")
            visited.add(number)
            children = []
            for is_leaf, first, second in self._nodes(number, page_size):
                if is_leaf:
                    values.extend((first, second))
                else:
                    children.append(first)
            pages += reversed(children)
        found = np.array(values, np.int64).reshape(-1, 2)
        if len(found) != entries:
            raise self._damaged(f"it has {len(found)} of {entries} values")
        if (found.sum(1) > self._size).any():
            raise self._damaged("it is cut off")
        if (found[:, 1] > MAX_VALUE).any():
            raise self._damaged(f"a value has more than {MAX_VALUE:,} bytes")
        return {"values": found}

    def _tree(self) -> tuple[int, int, int]:
        """Return page size, number of values and root page of the newer of the two states."""
        states, page_size = {}, 0
        for number in (0, 1):  # The states are on the first two pages.
            fields = META.unpack(self._read(number * page_size + PAGE.size, META.size))
            magic, version, size, flags, entries, root, transaction = fields
            if (magic, version) != (MAGIC, VERSION) or flags:
                raise self._damaged(f"it is not an LMDB file of version {VERSION}")
            page_size = page_size or size
            if page_size not in PAGE_SIZES:
                raise self._damaged(f"its pages have {page_size} bytes")
            states[transaction] = entries, root
        return page_size, *states[max(states)]

    def _nodes(self, number: int, size: int) -> Iterator[tuple[bool, int, int]]:
        """Yield the nodes of a page: (False, child page, 0) or (True, start, length of a value)."""
        page = self._read(number * size, size)
        found, _, flags, end, _ = PAGE.unpack_from(page)
        count = (end - PAGE.size) // 2
        is_page = found == number and flags in (BRANCH, LEAF) and end >= PAGE.size
        if not is_page or end + count * NODE.size > size:
            raise self._damaged(f"page {number} is not part of the tree")
        for offset in struct.unpack_from(f"<{count}H", page, PAGE.size):
            if offset + NODE.size > size:
                raise self._damaged(f"a node of page {number} is not on it")
            low, high, kind, key = NODE.unpack_from(page, offset)
            start, length = offset + NODE.size + key, low | high << 16
            if flags == BRANCH:
                yield False, length | kind << 32, 0
                continue
            if start + (8 if kind == IS_BIG else length) > size or kind not in (0, IS_BIG):
                raise self._damaged(f"a value of page {number} is not on it")
            place = number * size + start
            if kind == IS_BIG:
                (target,) = struct.unpack_from("<Q", page, start)
                place = min(target, 2**40) * size + PAGE.size
            yield True, place, length

    def _read(self, start: int, length: int) -> bytes:
        data = os.pread(self._file, length, start) if start < self._size else b""
        if len(data) != length:
            raise self._damaged("it is cut off")
        return data

    def _damaged(self, problem: str) -> InputError:
        return InputError(f"{self.path} is damaged: {problem}. Download it again.")
