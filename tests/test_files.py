"""Files that are damaged, of another kind, or hostile: each is one line that names the file."""

import importlib.util
import io
import os
import pwd
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest

import runs
from configs import folders
from errors import InputError, brief, cache_folder, expand_home, printable
from metrics import inception_weights
from readers import cache, files
from readers.files import NUMBER
from runs.checkpoints import Checkpoints, Found
from runs.training_log import remove_later_steps
from tests import tiny
from tests.refusal import refused

DEPENDS = {"model.nf": 8, "step": 3}
ARRAYS = {"loss": np.arange(5.0), "nfe": np.arange(5)}

# --- any file ---


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as file:
        file.bind(str(path))


KINDS = {
    "a named pipe": os.mkfifo,
    "socket": unix_socket,
    "a folder": os.mkdir,
    "Too many levels of symbolic links": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "No such file or directory": lambda path: None,
}


@pytest.mark.parametrize(("kind", "make"), KINDS.items())
def test_only_regular_files_are_opened(tmp_path, kind, make):
    make(tmp_path / "file")
    for read in (
        lambda path: files.read_json(path, dict, "--flag"),
        lambda path: files.read_npz(path, what="--flag"),
        lambda path: files.read_bytes(path, "--flag"),
    ):
        refused(f"--flag = '.*file' .*{kind}", read, tmp_path / "file")


def test_whole_files_have_a_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS_ALLOWED", 4)
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    assert files.read_verified(path, "81dc9bdb52d04dc20036dbd8313ed055") == b"1234"
    path.write_bytes(b"12345")
    refused("a has more than 4 bytes", files.read_bytes, path)


# --- the home directory ---


@pytest.fixture
def without_home(tmp_path, monkeypatch):
    """Let the user have neither HOME nor an entry in the table of users; return its cache."""

    def fail(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"score_sde-{os.getuid()}"


def test_a_home_directory_that_is_unknown(without_home, monkeypatch):
    """The cache is then a folder that no other user can write."""
    for path, user in (("~no_such_user/a", "~no_such_user"), (Path("~/a"), "~")):
        message = f"--flag = '{path}': the home directory '{user}' is unknown. Give an"
        refused(message, expand_home, path, "--flag")
    for module in (cache, inception_weights):
        spec = importlib.util.spec_from_file_location("fresh", module.__file__)
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
        found = [fresh.FOLDER] if module is cache else fresh.CACHES
        assert all(without_home in folder.parents for folder in found)
    assert cache_folder() == without_home
    assert without_home.stat().st_mode & 0o777 == 0o700
    without_home.chmod(0o707)
    assert cache_folder() == Path(os.devnull)
    without_home.rmdir()
    for make in (lambda path: path.symlink_to(path.parent), Path.touch):
        make(without_home)
        assert cache_folder() == Path(os.devnull)
        without_home.unlink()
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_folder() == Path("/home/user/.cache")


def test_texts_of_errors():
    """Control characters are escaped, and advice to load a file unsafely is not repeated."""
    assert printable("a\x1b[2J\n\u202e\udc80é b") == "a\\x1b[2J\\n\\u202e\\udc80é b"
    assert brief(ValueError("a\x1b[2J\nb")) == "a\\x1b[2J"
    for advice in ("use allow_pickle=False", "Weights only load failed", "`weights_only`"):
        assert brief(ValueError(advice)).endswith("Python objects, which are not loaded")


# --- JSON ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"step": 3', "as JSON"),
        (b"\xff\xfe\x00\x80", "as JSON"),
        (b"[" * 10**6, "nested too deeply"),
        (b'{"a": ' * 400 + b"1" + b"}" * 400, "nested too deeply"),
        (b'{"step": 1, "step": 2}', "a name occurs twice"),
        (b'{"step": ' + b"1" * 5000 + b"}", "as JSON"),
        (b'{"step": ' + b"1" * 30 + b"}", "'step' is an integer of more than 64 bits"),
        (b"[]", "its content is of type list instead of dict"),
        (b"{}", "its content has no 'step'"),
        (b'{"step": true}', "'step' is of type bool instead of int"),
        (b'{"step": 1, "names": [1]}', "an entry of 'names' is of type int instead of str"),
        (b'{"step": 1, "inner": {"a": "b"}}', "'a' is of type str instead of int or float"),
        (b'{"step": 1}' + b" " * files.MAX_TEXT, "limit"),
        (b'{"step": 1, "inner": {"a": NaN}, "more": 3}', ""),
    ],
)
def test_json(tmp_path, content, words):
    path, schema = tmp_path / "a.json", {"step": int, "names?": [str], "inner?": {"a": NUMBER}}
    path.write_bytes(content)
    if words:
        refused(f"a.json .*{words}", files.read_json, path, schema)
    else:
        assert files.read_json(path, schema)["step"] == 1


def test_lines_that_are_damaged_are_skipped(tmp_path):
    lines = [b'{"step": 1}', b"[1]", b"", b"\xff\x00", b"[" * 100_000, b'{"step": 2}', b'{"st']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert list(files.read_lines(tmp_path / "a.jsonl")) == [{"step": 1}, {"step": 2}]
    assert not list(files.read_lines(tmp_path / "nothing"))


# --- arrays ---


def test_arrays(tmp_path, monkeypatch):
    """Both versions of the format; what an archive may expand to is limited."""
    for version in ((1, 0), (2, 0)):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.zeros((2, 3), np.uint8), version=version)
        stream.seek(0)
        assert files.read_header(stream) == ((2, 3), np.dtype(np.uint8), "C")
    monkeypatch.setattr(files, "ALWAYS_ALLOWED", 1000)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    refused("a.npz declares a content of 8,000,128 bytes", files.read_npz, tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=np.zeros(10**4))
    assert files.read_npz(tmp_path / "b.npz")["a"].shape == (10**4,)


def test_changed_bytes_of_arrays_are_noticed(tmp_path):
    """Flipped bits are an error, or do not change the arrays, as in times of the archive."""
    path = tmp_path / "a.npz"
    runs.save_arrays(path, ARRAYS, DEPENDS)
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 100).astype(int):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x20]) + whole[position + 1 :])
        found = runs.load_arrays(path, DEPENDS)
        if found is not None:
            assert found.keys() == ARRAYS.keys()
            assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


# --- writing ---


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
    for name in ("a" * 255, "\N{SNOWMAN}" * 85):  # Names of any length.
        runs.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


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
    message = "ema is a folder; it must be a regular file"
    refused(message, Checkpoints(tmp_path).restore, Found(1, "checkpoints", 1), {})


# --- rounds ---


def rewrite(path, **changes):
    """Change arrays of an .npz file, or remove those that are None, with valid checksums."""
    arrays = files.read_npz(path) | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


DAMAGE = {
    "missing array": lambda path: rewrite(path, nfe=None),
    "another type": lambda path: rewrite(path, loss=np.arange(5, dtype=np.float32)),
    "no description": lambda path: rewrite(path, depends=None),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
}


def test_damaged_rounds_are_computed_again(tmp_path, caplog):
    computed = []

    def compute(index):
        computed.append(index)
        return ARRAYS

    for _ in range(2):
        paths = runs.run_rounds(tmp_path, "loss", 3, compute, DEPENDS)
    assert computed == [0, 1, 2]
    for damage in DAMAGE.values():
        damage(paths[1])
        computed.clear()
        runs.run_rounds(tmp_path, "loss", 3, compute, DEPENDS)
        assert computed == [1]
        assert "1 file(s) of loss" in caplog.text
        assert len(runs.load_rounds(paths)["loss"]) == 15


def test_arrays_of_rounds_are_never_left_out(tmp_path):
    paths = runs.round_paths(tmp_path, "loss", 3)
    for path in paths:
        np.savez(path, **ARRAYS)
    assert runs.load_rounds(paths, "loss", optional=["classes"]).keys() == {"loss"}
    rewrite(paths[2], classes=np.zeros(5))
    refused("loss_2.npz lacks classes", runs.load_rounds, paths, "loss", optional=["classes"])
    rewrite(paths[1], loss=None)
    for names in ((), ("loss",)):
        refused("loss_1.npz lacks loss, or .* Delete it", runs.load_rounds, paths, *names)
    cases = {
        "loss_0.npz .* do not fit each other": np.zeros((5, 2)),
        r"has the shape \(14,\) instead of \(15,\)": np.zeros(4),
        "loss_1.npz: loss is of type <U1": np.array(["1"] * 5),
        "loss_1.npz: loss is of type complex": np.ones(5, complex),
    }
    for message, loss in cases.items():
        rewrite(paths[1], loss=loss)
        refused(message, runs.load_rounds, paths, loss=(15,))
    paths[0].unlink()
    paths[0].mkdir()
    arguments = tmp_path, "loss", 1, lambda index: ARRAYS, DEPENDS
    refused("loss_0.npz cannot be written: Is a directory", runs.run_rounds, *arguments)


# --- the config of a folder ---


@pytest.mark.parametrize("content", [b"", b"[]", b'{"model": 3}', b'{"a.b": 3}', b"[" * 100_000])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    message = "config that cannot be read: .* Restore config.json, or"
    refused(message, folders.check_config, tmp_path, tiny.config(), "training")
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


def test_other_files_in_the_place_of_a_config_or_folder(tmp_path):
    for make in (os.mkfifo, os.mkdir):
        make(tmp_path / "config.json")
        refused("config.json is a", folders.claim, tmp_path, tiny.config(), "training")
        os.rename(tmp_path / "config.json", tmp_path / make.__name__)
    (tmp_path / "eval").write_text("")
    claim = tmp_path / "eval", tiny.config(), "evaluation"
    refused("cannot create the folder .*eval: File", folders.claim, *claim)
