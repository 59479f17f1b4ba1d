"""The reader of EDM's pickles: what it reads, and what it refuses without running anything."""

import contextlib
import pickle
import re
import tracemalloc

import numpy as np
import pytest

from errors import InputError
from pretrained.edm_format import read_network
from tests import edm_files, reference
from tests.edm_files import Call, Raw, dumps
from tests.refusal import refused

TENSORS = {
    "u": np.arange(3, dtype=np.float32),
    "model.map_layer0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "model.enc.16x16_conv.bias": np.ones(4, np.float32),
}


def written(folder, content):
    path = folder / "network-snapshot-000100.pkl"
    path.write_bytes(content if isinstance(content, bytes) else dumps(content))
    return path


def with_tensor(value):
    """A file whose network has one parameter."""
    return edm_files.network({"weight": value})


def test_a_network_is_read_as_data(tmp_path):
    """Tensors and arguments are those that were written; the source is not run."""
    path = written(tmp_path, edm_files.network(TENSORS, img_resolution=16, dropout=0.5))
    network = read_network(path)
    assert network.kind == "EDMPrecond"
    assert network.keywords == {"img_resolution": 16, "dropout": 0.5}
    assert network.data_set["xflip"] is True
    assert network.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(network.tensors[name], tensor)


def test_strides(tmp_path):
    """A transposed tensor, and a part of a storage, as PyTorch saves views."""
    data = np.arange(6, dtype=np.float32)
    view = edm_files.tensor(data, shape=(3, 2), strides=(1, 3))
    found = read_network(written(tmp_path, with_tensor(view))).tensors["weight"]
    np.testing.assert_array_equal(found, data.reshape(2, 3).T)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path, protocol):
    """Instructions of all protocols that Python writes for plain values are followed."""
    plain = {"a": [1, 2.5, -70_000, 2**40, (), (1,), (1, 2), "text", b"bytes", None, True, {1, 2}]}
    if protocol == 2:  # It has no instruction for bytes, and none for sets.
        plain = {"a": [1, 2.5, (1, 2, 3), "text"]}
    content = pickle.dumps(plain, protocol)
    refused("it has no entry 'ema'", read_network, written(tmp_path, content))  # Read to its end.


# --- malicious files ------------------------------------------------------------------------------


def nested(call):
    """A storage whose record is a call."""
    content = edm_files.storage(np.ones(2), main=call)
    return with_tensor(Call("torch.storage", "_load_from_bytes", (content,)))


def raw(code):
    """A file whose only entry is made by instructions."""
    return {"ema": Raw(code)}


TOUCH = ("touch marker",)
MALICIOUS = {
    "os.system": ({"ema": Call("os", "system", TOUCH)}, "it names os.system"),
    "posix.system": (with_tensor(Call("posix", "system", TOUCH)), "it names posix.system"),
    "in a storage": (nested(Call("os", "system", TOUCH)), "it names os.system"),
    "eval": ({"ema": Call("builtins", "eval", ("1",))}, "it names builtins.eval"),
    "getattr": ({"ema": Call("builtins", "getattr", ("1",))}, "it names builtins.getattr"),
    "a torch global": (
        with_tensor(Call("torch._utils", "_rebuild_sparse_tensor", (1,))),
        "it names torch._utils._rebuild_sparse_tensor",
    ),
    "torch.load": (with_tensor(Call("torch", "load", ("x",))), "it names torch.load"),
    "a longer name": (
        {"ema": Call("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__")},
        "it names torch_utils.persistence._reconstruct_persistent_obj.__globals__",
    ),
    "Python 2's names": (raw(b"cos\nsystem\n(X\x01\x00\x00\x00atR"), "it names os.system"),
    "an old instruction": (raw(b"(cos\nsystem\no"), "names os.system"),
    "INST": (raw(b"(ios\nsystem\n"), "it has the instruction INST"),
    "EXT1": (raw(b"\x82\x01"), "it has the instruction EXT1"),
    "PERSID": (raw(b"Pname\n"), "it has the instruction PERSID"),
    "a call of a text": (raw(b"X\x01\x00\x00\x00a)R"), "it calls a value that is no name"),
    "a call of a record": (raw(b"ctorch\nFloatStorage\n)R)R"), "a value that is no name"),
    "a state of a name": (raw(b"ccollections\nOrderedDict\n}b"), "a value that is no record"),
    "a state of a list": (raw(b"]}b"), "it changes a value that is no record"),
    "NEWOBJ_EX": (raw(b"ccollections\nOrderedDict\n)}\x92"), "it has the instruction"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_files_are_refused_by_name(tmp_path, monkeypatch, name):
    content, message = MALICIOUS[name]
    path = written(tmp_path, content)
    monkeypatch.chdir(tmp_path)
    refused(message, read_network, path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


# --- damaged files --------------------------------------------------------------------------------

ONES = np.ones(4, np.float32)
HUGE = (2**62).to_bytes(8, "little")


def stored(content):
    return with_tensor(Call("torch.storage", "_load_from_bytes", (content,)))


def view(**options):
    return dumps(with_tensor(edm_files.tensor(ONES, **options)))


REPEATED = (edm_files.tensor(ONES, shape=(2,), strides=(0,)), 0, (2,), (1,))
VIEW_OF_A_VIEW = Call("torch._utils", "_rebuild_tensor_v2", REPEATED)
STORED_TWICE = {"a": Raw(edm_files._code(np.ones(10**5)) + b"\x94")}
STORED_TWICE |= {f"b{i}": Raw(b"h\x01") for i in range(9)}
TWO_OF_ONE = edm_files._code(edm_files.module("EDMPrecond", STORED_TWICE))
TWO_OF_ONE = b"\x80\x04}(X\x03\x00\x00\x00ema" + TWO_OF_ONE + b"u."
DAMAGED = {
    "empty": (b"", "empty"),
    "no dictionary": (dumps([1]), "cannot be read as a network"),
    "no network": (dumps({"ema": 3}), "no entry 'ema'"),
    "no modules": (dumps({"ema": edm_files.persistent("EDMPrecond", {})}), "_init_args"),
    "bytes": (dumps(raw(b"\x8e" + HUGE)), "cannot be read"),
    "bytearray": (dumps(raw(b"\x96" + HUGE)), "cannot be read"),
    "text": (dumps(raw(b"X\xff\xff\xff\x7f")), "cannot be read"),
    "frame": (b"\x80\x04\x95" + HUGE + b"}.", "cannot be read"),
    "integer": (dumps(raw(b"\x8b\xff\xff\xff\x7f")), "cannot be read"),
    "memo": (dumps(raw(b"}r\xff\xff\xff\xff")), "it stores a value as number 4294967295"),
    "shape": (view(shape=(10**6, 10**6)), "a tensor of shape .1000000, 1000000. is larger"),
    "repeated": (view(shape=(10**6, 10**6), strides=(0, 0)), "is larger than its data"),
    "outside": (view(shape=(2,), strides=(4,)), "is larger than its data"),
    "negative": (view(shape=(2,), strides=(-1,)), "damaged shape"),
    "view of a view": (dumps(with_tensor(VIEW_OF_A_VIEW)), "damaged shape"),
    "count": (dumps(stored(edm_files.storage(ONES, count=2**60))), "damaged or not complete"),
    "short": (dumps(stored(edm_files.storage(ONES)[:-1])), "damaged or not complete"),
    "two of one storage": (TWO_OF_ONE, "its values are larger than the file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_errors_and_need_little_memory(tmp_path, name):
    content, message = DAMAGED[name]
    path = written(tmp_path, content)
    tracemalloc.start()
    try:
        refused(message, read_network, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20 + 20 * len(content)


def test_truncated_files_are_errors(tmp_path):
    content = dumps(edm_files.network(TENSORS))
    for end in range(0, len(content), 7):
        refused("cannot be read", read_network, written(tmp_path, content[:end]))


def test_changed_bytes_are_errors_or_read(tmp_path):
    """Nothing but InputError is raised for files in which a few bytes differ."""
    content, rng = dumps(edm_files.network(TENSORS)), np.random.default_rng(0)
    for _ in range(500):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        with contextlib.suppress(InputError):
            read_network(written(tmp_path, bytes(changed)))


def test_recorded_files_name_only_what_is_read():
    """Every name in the recorded files is on the list, so that nothing in them is skipped."""
    for path in sorted(reference.find("edm").glob("*/network-snapshot.pkl")):
        assert re.match(r"\w+Precond", read_network(path).kind)
