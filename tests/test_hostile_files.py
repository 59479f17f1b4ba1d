"""Small checkpoint files that are made to hang, crash or fill the memory: each is one error."""

import functools
import io
import struct
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest

from pretrained import edm_format, torch_pickles
from tests import edm_files, fuzz
from tests.edm_files import Call, Raw
from tests.fuzz_formats import FORMATS

NAME = b"X\x01\x00\x00\x00a"
DOUBLED = b")" + b"q\x00h\x00\x86" * 100  # A tuple of itself twice, and so on: 2^100 parts.
LISTS = b"]" + b"q\x00]h\x00ah\x00a" * 100
DEEP = b")" + b"\x85" * 250_000
DICT = b"ccollections\nOrderedDict\n"
HUGE = b"\x8a\x09" + b"\xff" * 8 + b"\x00"  # 2^64 - 1
ONES = np.ones(4, np.float32)


def integers(count, step, parts=(b"}(", b"N", b"u")):
    """Instructions for a dictionary with these keys, or for a list of pairs."""
    start, value, end = parts
    keys = ((i * step).to_bytes(10, "little") for i in range(count))
    return start + b"".join(b"\x8a\x0a" + key + value for key in keys) + end


def tensor(shape):
    """A tensor whose shape is made by instructions; in .pth files the call is refused as well."""
    return edm_files._code(edm_files.tensor(ONES, shape=Raw(shape), strides=(1,)))


def nested(levels):
    """Storages in storages."""
    content = edm_files.storage(ONES)
    for _ in range(levels):
        content = edm_files.storage(ONES, Call("torch.storage", "_load_from_bytes", (content,)))
    return edm_files._code(Call("torch.storage", "_load_from_bytes", (content,)))


def repeated():
    """One storage, whose bytes are in the file once, loaded many times."""
    content = edm_files._code(edm_files.storage(np.ones(10**5))) + b"q\x01"
    load = b"ctorch.storage\n_load_from_bytes\n"
    return b"](" + load + content + b"\x85R" + (load + b"h\x01\x85R") * 10**5 + b"e"


PICKLES = {  # Instructions that push a value.
    "tuple as key": b"}" + DOUBLED + b"Ns",
    "tuple as one of several keys": b"}(" + NAME + b"N" + DOUBLED + b"Nu",
    "tuple in a set": b"\x8f(" + DOUBLED + b"\x90",
    "tuple in a frozen set": b"(" + DOUBLED + b"\x91",
    "tuple as argument": DICT + DOUBLED + b"\x85R",
    "tuple as arguments": DICT + DOUBLED + b"R",
    "tuple of a new object": DICT + DOUBLED + b"\x81",
    "tuple as module": DOUBLED + NAME + b"\x93",
    "tuple as class": b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}(X\x0a\x00\x00\x00"
    b"class_name" + DOUBLED + b"X\x05\x00\x00\x00stateNu\x85R",
    "tuple as identifier": DOUBLED + b"Q",
    "tuple as state": DICT + b")R" + DOUBLED + b"b" + DOUBLED,
    "tuple": DOUBLED,
    "lists": LISTS,
    "deep tuple as key": b"}" + DEEP + b"Ns",
    "deep tuple": DEEP[:50_000],
    "deep calls": b"ctorch\nFloatStorage\n" * 50_000 + b")R" + b"\x85R" * 49_999,
    "deep states": b"ctorch\nFloatStorage\n)Rq\x00" + b"(K\x00" * 50_000 + b"t" * 50_000 + b"b",
    "deep list": b"]" * 50_000 + b"a" * 49_999,
    "deep dictionary": (b"}" + NAME) * 50_000 + b"N" + b"s" * 50_000,
    "cycle": b"]q\x00h\x00a",
    "cycle of a dictionary": b"}q\x00" + NAME + b"h\x00s",
    "colliding integers": integers(20_000, 2**61 - 1),
    "small integers": integers(20_000, 1),
    "negative integer": b"}J\xff\xff\xff\xffNs",
    "number as key": b"}G" + bytes(8) + b"Ns",
    "long texts as keys": b"}(X\x40\x42\x0f\x00" + b"a" * 10**6 + b"Nu",
    "text many times": b"](X\x40\x42\x0f\x00" + b"a" * 10**6 + b"q\x00" + b"h\x00" * 10**5 + b"e",
    "DUP": b")2",
    "POP": b"N0N",
    "EXT": b"\x84\x01\x00\x00\x00",
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "LONG1": b"\x8a\xff" + b"\x7f" * 255,
    "LONG": b"L" + b"9" * 10**6 + b"L\n",
    "INT": b"I" + b"9" * 10**6 + b"\n",
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 2**62),
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**40),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**40),
    "memo": b"}r\xff\xff\xff\x7f",
    "memo gaps": b"".join(b"Nr" + struct.pack("<I", i << 20) for i in range(1000)) + b"}",
    "nothing in the memo": b"h\x05",
    "no mark": b"t",
    "OBJ": b"(" + DICT + b"o",
    "INST": b"(icollections\nOrderedDict\n",
    "dotted name": b"ccollections\nOrderedDict.__init__\n",
    "long name": b"c" + b"a" * 10**6 + b"\nb\n",
    "NEWOBJ_EX": DICT + b")}\x92",
    "NEXT_BUFFER": b"\x97",
    "nested storages": nested(1),
    "many nested storages": nested(30),
    "storage many times": repeated(),
    "many dimensions": tensor(b"(" + HUGE * 100_000 + b"t"),
    "huge dimensions": tensor(b"(" + HUGE * 8 + b"t"),
    "doubled dimensions": tensor(DOUBLED),
}


def zipped(main, level=zipfile.ZIP_STORED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", level) as archive:
        for name, content in {"data.pkl": main, "version": b"3"}.items() | members.items():
            archive.writestr(f"a/{name}", content)
    return buffer.getvalue()


def pickled(code):
    return b"\x80\x02" + code + b"."


def headed(main):
    parts = [edm_files.dumps(part) for part in (torch_pickles.MAGIC, 1001, {"little_endian": True})]
    return b"".join(parts) + main + edm_files.dumps([])


PAIRS = Raw(integers(100_000, 2**61 - 1, (b"](", b"N\x86", b"e")))
PAIRED = edm_files.module("EDMPrecond", {}, _init_kwargs=PAIRS)
SMALL = zipped(pickled(b"}"))
PLACES = {
    "edm": lambda code: b"\x80\x04}X\x03\x00\x00\x00ema" + code + b"s.",
    "pth": lambda code: zipped(pickled(code)),
    "legacy": lambda code: headed(pickled(code)),
    "cifar": lambda code: b"\x80\x02}X\x04\x00\x00\x00data" + code + b"s.",
}
OTHERS = {
    "edm": {
        "instructions": b"\x80\x04](" + b"}" * 2_500_000 + b"e.",
        "colliding arguments": edm_files.dumps(edm_files.network({}) | {"ema": PAIRED}),
        "colliding names": edm_files.dumps(edm_files.network({}) | {"dataset_kwargs": PAIRS}),
    },
    "pth": {
        "compressed": zipped(pickled(b"}" + b"N" * 10**6), zipfile.ZIP_DEFLATED),
        "bomb": zipped(bytes(10**8), zipfile.ZIP_BZIP2),
        "no table of contents": SMALL[:-22],
        "bytes behind": SMALL + bytes(70_000),
        "another name": SMALL.replace(b"a/data.pkl", b"a/data.pkk", 1),
        "size": SMALL.replace(struct.pack("<I", 4), struct.pack("<I", 2**31)),
        "two": zipped(pickled(b"}"), **{"b/data.pkl": pickled(b"}")}),
        "big endian": zipped(pickled(b"}"), byteorder=b"big"),
        "many members": zipped(pickled(b"}"), **{str(i): b"" for i in range(80_000)}),
        "no storage": zipped(
            pickled(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + NAME * 2 + b"K\x01tQ")
        ),
    },
    "flax": {
        "deep maps": b"\x81\xa1a" * 10**5,
        "deep arrays": b"\x91" * 10**5,
        "declared arrays": b"\x81\xa1a" + b"\xdd\x00\x0f\xff\xff" * 500 + bytes(2**20),
        "declared maps": b"\xdf\xff\xff\xff\xff" * 500 + bytes(2**20),
        "empty arrays": b"\x81\xa1a"
        + functools.reduce(lambda inner, _: b"\x98" + inner * 8, range(7), b"\x90"),
        "many values": b"\xdf\x00\x01\xff\xff" + b"".join(b"\xa5%05dN" % i for i in range(2**17)),
        "array in an array": msgpack.packb(
            {"a": msgpack.ExtType(1, b"\x93" + b"\xdd\x00\x00\xff\xff" * 500 + bytes(2**16))}
        ),
        "structured": msgpack.packb(
            {"a": msgpack.ExtType(1, msgpack.packb(((1,), "f4," * 10**5, bytes(8))))}
        ),
        "other extension": msgpack.packb({"a": msgpack.ExtType(9, b"a")}),
    },
}


@pytest.mark.parametrize("kind", ["edm", "pth", "legacy", "cifar", "flax"])
def test_hostile_files_are_errors(tmp_path, kind):
    """They are read in a process, which must neither crash nor need much time or memory."""
    place, read = PLACES.get(kind), FORMATS[kind][1]
    every = 8 if kind == "legacy" else 1  # Its pickles have the reader of .pth files.
    files = {name: place(PICKLES[name]) for name in [*PICKLES][::every]} if place else {}
    files |= OTHERS.get(kind, {})
    ask, found = fuzz.start(read), {}
    for number, (name, content) in enumerate(files.items()):
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(content)
        found[name] = ask(path)
        ask = ask if found[name][0] in ("result", "InputError") else fuzz.start(read)
    wrong = {name: each for name, each in found.items() if each[0] != "InputError"}
    assert not wrong


def test_large_networks_are_far_below_the_limits(tmp_path):
    """A file with 3,000 tensors, more than any that is published."""
    tensors = {f"block{i}.weight": ONES for i in range(3000)}
    path = Path(tmp_path / "network.pkl")
    path.write_bytes(edm_files.dumps(edm_files.network(tensors)))
    assert edm_format.read_network(path).tensors.keys() == tensors.keys()
