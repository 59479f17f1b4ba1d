"""Files that are damaged, of another kind, or hostile: each is one line that names the file."""

import importlib.util
import io
import os
import pwd
import socket
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import runs
from configs import folders
from errors import InputError, brief, cache_folder, expand_home, printable
from metrics import inception_weights
from readers import cache, files
from report.training_log import remove_later_steps
from runs.checkpoints import Checkpoints, Found
from tests import tiny
from tests.refusal import refused

DEPENDS = {"model.nf": 8, "step": 3}
ARRAYS = {"loss": np.arange(5.0), "nfe": np.arange(5)}

# --- any file -------------------------------------------------------------------------------------


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as file:
        file.bind(str(path))


def loop(path):
    path.symlink_to(path.name)


def folder(path):
    path.mkdir()


KINDS = [
    (fifo, "is a named pipe; it must be a regular file"),
    (unix_socket, "is a socket; it must be a regular file"),
    (folder, "is a folder; it must be a regular file"),
    (loop, "cannot be read: Too many levels of symbolic links"),
    (lambda path: path.symlink_to("/dev/zero"), "is a device; it must be a regular file"),
    (lambda path: None, "cannot be read: No such file or directory"),
]


@pytest.mark.parametrize(("make", "message"), KINDS)
@pytest.mark.parametrize(
    "read",
    [
        lambda path: files.read_json(path, dict, "--flag"),
        lambda path: files.read_npz(path, what="--flag"),
        lambda path: files.read_safetensors(path, "--flag"),
        lambda path: files.read_bytes(path, "--flag"),
    ],
)
def test_only_regular_files_are_opened(tmp_path, make, message, read):
    make(tmp_path / "file")
    refused(f"--flag = '.*file' {message}", read, tmp_path / "file")


def test_whole_files_have_a_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS_ALLOWED", 4)
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    assert files.read_verified(path, "81dc9bdb52d04dc20036dbd8313ed055") == b"1234"
    path.write_bytes(b"12345")
    refused("a has more than 4 bytes", files.read_bytes, path)


# --- the home directory ---------------------------------------------------------------------------


@pytest.fixture
def without_home(tmp_path, monkeypatch):
    """Let the user have neither HOME nor an entry in the table of users; return its cache."""

    def fail(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"score_sde-{os.getuid()}"


def test_a_home_directory_that_is_unknown(without_home):
    message = r"--flag = '~no_such_user/a': the home directory '~no_such_user' is unknown. Give an"
    refused(message, expand_home, "~no_such_user/a", "--flag")
    with pytest.raises(InputError, match="--flag = '~/a': the home directory '~' is unknown"):
        expand_home(Path("~/a"), "--flag")


def test_the_cache_of_a_user(without_home, monkeypatch):
    """Without a home directory, it is a folder that no other user can write."""
    assert cache_folder() == without_home
    assert without_home.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == without_home
    without_home.chmod(0o707)
    assert cache_folder() == Path(os.devnull)
    without_home.rmdir()
    without_home.symlink_to(without_home.parent)
    assert cache_folder() == Path(os.devnull)
    without_home.unlink()
    without_home.touch()
    assert cache_folder() == Path(os.devnull)
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_folder() == Path("/home/user/.cache")


@pytest.mark.parametrize("module", [cache, inception_weights])
def test_modules_with_caches_need_no_home_directory(without_home, module):
    spec = importlib.util.spec_from_file_location("fresh", module.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    folders = [fresh.FOLDER] if module is cache else fresh.CACHES
    assert all(without_home in folder.parents for folder in folders)


# --- texts ----------------------------------------------------------------------------------------


def test_control_characters_are_escaped():
    assert printable("a\x1b[2J\n\u202e\udc80é b") == "a\\x1b[2J\\n\\u202e\\udc80é b"
    assert brief(ValueError("a\x1b[2J\nb")) == "a\\x1b[2J"


@pytest.mark.parametrize(
    "advice",
    [
        "Object arrays cannot be loaded when allow_pickle=False",
        "Weights only load failed. ... re-running `torch.load` with `weights_only` set to `False`",
    ],
)
def test_advice_to_load_unsafely_is_not_repeated(advice):
    assert brief(ValueError(advice)).endswith(
        "contains pickled Python objects, which are not loaded"
    )


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON: Expecting value"),
        (b'{"step": 3', "cannot be read as JSON: Expecting"),
        (b"\xff\xfe\x00\x80", "cannot be read as JSON: 'utf-8' codec"),
        (b"[" * 100_000, "cannot be read as JSON: it is nested too deeply"),
        (b'{"step": ' + b"1" * 5000 + b"}", "cannot be read as JSON: Exceeds the limit"),
        (b'{"step": ' + b"1" * 30 + b"}", "is damaged: 'step' is an integer of more than 64 bits"),
        (b"[]", "is damaged: its content is a list instead of an object"),
        (b"3", "its content is an integer instead of an object"),
        (b"null", "its content is null instead of an object"),
        (b"{}", "its content has no 'step'"),
        (b'{"step": true}', "'step' is true or false instead of an integer"),
        (b'{"step": 1, "names": [1]}', "an entry of 'names' is an integer instead of a string"),
        (b'{"step": 1, "inner": {"a": "b"}}', "'a' is a string instead of an integer or a number"),
    ],
)
def test_json_that_is_damaged(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    schema = {"step": int, "names?": [str], "inner?": {"a": files.NUMBER}}
    with pytest.raises(InputError, match=f"a.json {message}" if " be " in message else message):
        files.read_json(tmp_path / "a.json", schema)


def test_json_that_is_as_expected(tmp_path):
    (tmp_path / "a.json").write_text('{"step": 1, "inner": {"a": NaN}, "more": 3}')
    schema = {"step": int, "names?": [str], "inner?": {"a": files.NUMBER}}
    assert files.read_json(tmp_path / "a.json", schema)["step"] == 1


def test_lines_that_are_damaged_are_skipped(tmp_path):
    lines = [b'{"step": 1}', b"[1]", b"", b"\xff\x00", b"[" * 100_000, b'{"step": 2}', b'{"st']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert list(files.read_lines(tmp_path / "a.jsonl")) == [{"step": 1}, {"step": 2}]
    assert not list(files.read_lines(tmp_path / "nothing"))
    refused("is a folder", list, files.read_lines(tmp_path))


# --- arrays ---------------------------------------------------------------------------------------


def header(shape, dtype="<f8"):
    """The start of a .npy file that declares an array."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((10**12,)), "a.npy does not have the size that its header states"),
        (header((2**62, 2**62)) + bytes(8), r"the shape \(4611686018427387904, .* is not possible"),
        (header((1,), "|O") + bytes(8), "it contains pickled Python objects, which are not loaded"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"nothing at all", "magic string is not correct"),
    ],
)
def test_arrays_that_are_damaged(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(InputError, match=rf"a.npz cannot be read as .npz: .*{message}") as caught:
        files.read_npz(tmp_path / "a.npz")
    assert "allow_pickle" not in str(caught.value)


def test_decompression_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS_ALLOWED", 1000)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    with pytest.raises(InputError, match="a.npz declares a content of 8,000,128 bytes; .* at most"):
        files.read_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=np.zeros(10**4))
    assert files.read_npz(tmp_path / "b.npz")["a"].shape == (10**4,)


@pytest.mark.parametrize("position", np.linspace(0, 0.999, 12))
def test_changed_bytes_of_arrays_are_noticed(tmp_path, position):
    """Flipped bits are an error, or do not change the arrays, as in times of the archive."""
    path = tmp_path / "a.npz"
    runs.save_arrays(path, ARRAYS, DEPENDS)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0x20
    path.write_bytes(content)
    found = runs.load_arrays(path, DEPENDS)
    if found is not None:
        assert found.keys() == ARRAYS.keys()
        assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


# --- writing --------------------------------------------------------------------------------------


def test_files_beside_a_result_are_kept(tmp_path):
    """Until a file is complete, it has a name of its own; nothing is left if writing fails."""
    (tmp_path / "a.json.tmp").write_text("of the user")
    runs.write_text(tmp_path / "a.json", "first")

    def fail(file):
        file.write(b"second")
        (hidden,) = set(tmp_path.iterdir()) - {tmp_path / "a.json", tmp_path / "a.json.tmp"}
        assert hidden.name == ".a.json.tmp"
        raise OSError("no space")

    refused("a.json cannot be written: no space", runs.write_atomically, tmp_path / "a.json", fail)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"a.json": "first", "a.json.tmp": "of the user"}


def lock(folder):
    with pytest.raises(InputError, match="lock cannot be (read|written)"), runs.locked(folder):
        pass


WRITERS = {
    ".a.json.tmp": lambda folder: runs.write_text(folder / "a.json", "text"),
    "metrics.jsonl": lambda folder: remove_later_steps(folder / "metrics.jsonl", 1),
    "lock": lock,
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_links_of_a_folder(tmp_path, name):
    folder, target = tmp_path / "theirs", tmp_path / "mine"
    folder.mkdir()
    (folder / name).symlink_to(target)
    WRITERS[name](folder)
    assert not target.exists()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    target.write_text("mine")
    WRITERS[name](folder)
    assert target.read_text() == "mine"


def test_folders_of_checkpoints_are_no_links(tmp_path):
    """Their files would not be looked at, and Orbax waits without end for a named pipe."""
    (tmp_path / "theirs").mkdir()
    os.mkfifo(tmp_path / "theirs" / "_METADATA")
    (tmp_path / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint_1" / "ema").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="ema is a folder; it must be a regular file"):
        Checkpoints(tmp_path).restore(Found(1, "checkpoints", 1), {})


@pytest.mark.parametrize("name", ["a" * 255, "\N{SNOWMAN}" * 85], ids=["ascii", "unicode"])
def test_names_of_any_length(tmp_path, name):
    runs.write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


# --- rounds ---------------------------------------------------------------------------------------


def rewrite(path, **changes):
    """Change arrays of an .npz file, or remove those that are None, with valid checksums."""
    arrays = files.read_npz(path) | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


DAMAGE = {
    "missing array": lambda path: rewrite(path, nfe=None),
    "missing entries": lambda path: rewrite(path, loss=np.arange(3.0)),
    "another type": lambda path: rewrite(path, loss=np.arange(5, dtype=np.float32)),
    "further array": lambda path: rewrite(path, more=np.zeros(3)),
    "no record": lambda path: rewrite(path, arrays=None),
    "no description": lambda path: rewrite(path, depends=None),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_rounds_are_computed_again(tmp_path, damage, caplog):
    computed = []

    def compute(index):
        computed.append(index)
        return ARRAYS

    for _ in range(2):
        paths = runs.run_rounds(tmp_path, "loss", 3, compute, DEPENDS)
    assert computed == [0, 1, 2]
    damage(paths[1])
    runs.run_rounds(tmp_path, "loss", 3, compute, DEPENDS)
    assert computed == [0, 1, 2, 1]
    assert "1 file(s) of loss" in caplog.text
    assert len(runs.load_rounds(paths)["loss"]) == 15


def test_arrays_of_rounds_are_never_left_out(tmp_path):
    paths = runs.round_paths(tmp_path, "loss", 3)
    for path in paths:
        np.savez(path, **ARRAYS)
    assert runs.load_rounds(paths, "loss", optional=["classes"]).keys() == {"loss"}
    rewrite(paths[2], classes=np.zeros(5))
    with pytest.raises(InputError, match="loss_2.npz lacks classes, or other rounds do"):
        runs.load_rounds(paths, "loss", optional=["classes"])
    rewrite(paths[1], loss=None)
    for names in ((), ("loss",)):
        refused("loss_1.npz lacks loss, or .* Delete it", runs.load_rounds, paths, *names)
    cases = {
        "loss_0.npz .* do not fit each other": np.zeros((5, 2)),
        r"has the shape \(14,\) instead of \(15,\)": np.zeros(4),
        "loss_1.npz: loss is of type <U1": np.array(["1"] * 5),
        "loss_1.npz: loss is of type complex": np.ones(5, complex),
        "loss_1.npz: loss is of type datetime": np.zeros(5, "M8[s]"),
    }
    for message, loss in cases.items():
        rewrite(paths[1], loss=loss)
        refused(message, runs.load_rounds, paths, loss=(15,))


def test_a_folder_in_the_place_of_a_round(tmp_path):
    (tmp_path / "loss_0.npz").mkdir()
    with pytest.raises(InputError, match="loss_0.npz cannot be written: Is a directory"):
        runs.run_rounds(tmp_path, "loss", 1, lambda index: ARRAYS, DEPENDS)


# --- the config of a folder -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b'"text"',
        b"null",
        b'{"model": {"nf": 8',
        b"\xff\x00",
        b'{"model": 3}',
        b'{"training": []}',
        b'{"a.b": 3, "model": {"name": {"x.y": 1}}}',
        b"[" * 100_000,
        b'{"model": {"name": ' + b'{"a": ' * 900 + b"1" + b"}" * 902,
    ],
)
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config that cannot be read: .* Restore config.json, or"):
        folders.check_config(tmp_path, tiny.config(), "training")
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("training", "checkpoints/checkpoint_1"),
        ("training", "checkpoints-meta/checkpoint_4"),
        ("training", "rollbacks.json"),
        ("evaluation", "checkpoint_1/samples_0.npz"),
        ("sampling", "0.png"),
    ],
)
def test_a_folder_belongs_to_its_config_from_the_first_result_on(tmp_path, kind, result):
    """A command that memory ended before left a config, which must not refuse the next one."""
    first, second = tiny.config(seed=1), tiny.config(seed=2)
    folders.claim(tmp_path, first, kind)
    for name in ("lock", "environments.json"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoint_1").mkdir()
    folders.claim(tmp_path, second, kind)
    (tmp_path / result).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / result).write_text("")
    with pytest.raises(InputError, match="seed: 2 there, 1 now"):
        folders.claim(tmp_path, first, kind)


@pytest.mark.parametrize("make", [fifo, folder, loop])
def test_a_config_that_is_no_file(tmp_path, make):
    make(tmp_path / "config.json")
    refused("config.json (is a|cannot be read)", folders.claim, tmp_path, tiny.config(), "training")


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "eval").write_text("")
    with pytest.raises(InputError, match="cannot create the folder .*eval: File exists"):
        folders.claim(tmp_path / "eval", tiny.config(), "evaluation")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_headers_of_npy_files(version):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros((2, 3), np.uint8), version=version)
    stream.seek(0)
    assert files.read_header(stream) == ((2, 3), np.dtype(np.uint8), "C")
