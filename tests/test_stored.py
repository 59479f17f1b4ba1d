"""Configs in files are data: they name no code and no other files, and errors name the file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import datasets
import errors
import options
import score_sde as ss
from commands import conversion
from configs import folders
from configs.default import complete
from configs.fields import ABSENT, FIELDS
from errors import InputError
from loading import load_config
from metrics import reference_statistics
from tests import tiny
from tests.refusal import refused

CODE = {"eval.features": ["pickle:loads", "a.b:c", "Inception", " inception", "inception ", ""]}
PATHS = {
    **dict.fromkeys(
        ("data.path", "data.tfrecords_path", "eval.inception_path", "eval.stats_path")
        + ("guidance.condition",),
        ["/a.npy", "a", "../a", "~/a", "a:b", "\x1b[2J", "\ud800"],
    ),
    "restore.input": ["/a", "."],
    "restore.mask": ["/a.png", "Box", "random ", ""],
}
OUTSIDE = {**CODE, **PATHS}
KINDS = ("config.json", "checkpoint", "safetensors")


@pytest.fixture(autouse=True)
def marks(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MARKS", tmp_path / "marks")


def content(without="", **changes):
    """The content of a config.json, without an option of the network."""
    fields = json.loads(json.dumps(complete(tiny.config()).to_dict()))
    fields["model"].pop(without, None)
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (fields[section] if section else fields)[key] = value
    return fields


def write(folder: Path, kind: str, text: str) -> Path:
    """Write a config as another person could, and return what a command would name."""
    folder.mkdir(exist_ok=True)
    if kind == "config.json":
        (folder / kind).write_text(text)
        return folder / kind
    if kind == "checkpoint":
        metadata = folder / "checkpoints" / "checkpoint_1" / "info" / "metadata"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text(f'{{"step": 1, "config": {text}, "checksums": {{}}}}')
        return folder
    path = folder / "a.safetensors"
    save_file({"ema/a": np.zeros(1, np.float32)}, path, {"step": "1", "config": text})
    return path


def leaves(domain):
    """The domains of the entries of a domain, or itself."""
    inner = (*getattr(domain, "domains", ()), *filter(None, [getattr(domain, "entry", None)]))
    return [leaf for each in inner for leaf in leaves(each)] or [domain]


def test_every_field_states_whether_a_file_may_set_it():
    """Strings that may be data are words or listed names; all others are in the table above."""
    for name, field in FIELDS.items():
        for domain in leaves(field.domain):
            match domain:
                case options.Flag() | options.Integer() | options.Real():
                    assert not domain.allows("a:b")
                case options.Word():
                    assert not any(map(domain.allows, ("a:b", "a/b", "..", "~", "a.b", "a\n")))
                case options.Name():
                    assert domain.known
                case options.FilePath():
                    assert name in PATHS
                case options.Code():
                    assert name in CODE
                case _:
                    raise AssertionError(f"is {name} data? state it in options.is_data")
        if field.default is not ABSENT:
            assert options.is_data(field.domain, field.default), name

    class Text:
        def allows(self, value):
            return isinstance(value, str)

        def describe(self):
            return "a string"

    assert not options.is_data(Text(), "a")


@pytest.mark.parametrize("kind", KINDS)
def test_code_and_files_are_not_taken_from_files(tmp_path, kind, capsys):
    """Each of these fields gets its default, which one line states, unless it is given as well."""
    cases = [(name, value) for name, values in OUTSIDE.items() for value in values]
    for name, value in cases:
        path = write(tmp_path / "theirs", kind, json.dumps(content(**{name: value})))
        section, key = name.split(".")
        default = "" if FIELDS[name].default is ABSENT else FIELDS[name].default
        assert load_config(path)[section][key] == default
        printed = capsys.readouterr().out
        assert printed.startswith("NOTE: not used from ")
        assert f"{name} = " in printed
        assert f"--config.{name}=..." in printed
        assert printed[:-1].isprintable()
    path = write(tmp_path / "theirs", kind, json.dumps(content(**{"data.path": "a"})))
    load_config(path, {"data.path"})
    assert not capsys.readouterr().out


def test_every_value_that_is_data_is_taken_from_files(tmp_path, capsys):
    changes = {"restore.mask": "random", "eval.features": "classifier", "data.dataset": "array"}
    changes |= {"sampling.solver": "heun", "data.image_size": [8, 4], "guidance.classes": [1, 2]}
    changes |= {"data.category": "cat", "restore.task": "deblur", "seed": 7}
    for kind in KINDS:
        path = write(tmp_path / kind, kind, json.dumps(content(**changes)))
        found = json.loads(json.dumps(load_config(path).to_dict()))
        assert found == content(**changes)
    assert not capsys.readouterr().out


def test_a_workdir_keeps_the_paths_that_this_user_wrote(tmp_path, capsys):
    """Not the code, not other paths, and not in a copy, an export or another field."""
    config = complete(tiny.config(**{"data.path": "mine", "eval.features": "pickle:loads"}))
    workdir, copy = tmp_path / "mine", tmp_path / "copy"
    folders.claim(workdir, config, "training")
    (tmp_path / "link").symlink_to(workdir)
    for path in (workdir, workdir / "config.json", tmp_path / "link"):
        found = load_config(path)
        assert (found.data.path, found.eval.features) == ("mine", "inception")
        printed = capsys.readouterr().out
        assert "eval.features = 'pickle:loads'" in printed
        assert "data.path" not in printed
    shutil.copytree(workdir, copy)
    assert load_config(copy).data.path == ""
    for changes in ({"data.path": "other"}, {"eval.stats_path": "mine"}):
        write(workdir, "config.json", json.dumps(content(**changes)))
        found = load_config(workdir)
        assert (found.data.path, found.eval.stats_path) == ("", "")
    path = write(workdir, "safetensors", json.dumps(content(**{"data.path": "mine"})))
    assert load_config(path).data.path == ""


def test_without_a_cache_no_path_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MARKS", Path(os.devnull, "paths"))
    folders.claim(tmp_path / "w", complete(tiny.config(**{"data.path": "mine"})), "training")
    assert load_config(tmp_path / "w").data.path == ""


def test_a_file_of_others_runs_no_code(tmp_path):
    """Imported images are a pickle that creates a file, and pickle.loads would extract features."""
    ran, prepared, source = tmp_path / "ran", tmp_path / "images.npy", tmp_path / "a.safetensors"
    program = b"cposix\nmkdir\n(S'" + bytes(ran) + b"'\ntR."
    images = np.frombuffer(20 * program.ljust(256, b"."), np.uint8).reshape(-1, 16, 16, 1)
    np.save(prepared, images)
    changes = {"data.dataset": "array", "data.path": str(prepared), "data.image_size": 16}
    changes |= {"eval.features": "pickle:loads", "eval.stats_path": str(tmp_path / "stats.npz")}
    workdir = tiny.untrained(tmp_path / "w")
    conversion.export_checkpoint(tiny.config(), str(workdir), str(source), average_only=True)
    metadata = {"step": "0", "updates": "0", "config": json.dumps(content(**changes))}
    save_file(load_file(source), source, metadata)
    imported = str(tmp_path / "imported")
    conversion.import_checkpoint(load_config(source), imported, str(source))
    config = load_config(imported)
    with pytest.raises(InputError):
        reference_statistics.fid_stats(config, imported)
    shutil.copytree(imported, tmp_path / "theirs")
    write(tmp_path / "theirs", "config.json", json.dumps(content(**changes)))
    theirs = load_config(tmp_path / "theirs")
    with pytest.raises(InputError):
        reference_statistics.fid_stats(theirs, str(tmp_path / "theirs"))
    assert not ran.exists()
    assert not (tmp_path / "stats.npz").exists()
    config.update_from_flattened_dict(changes)  # As the command line may.
    with pytest.raises(InputError, match="eval.features = 'pickle:loads' failed"):
        reference_statistics.fid_stats(config, imported)
    assert ran.exists()


@pytest.mark.parametrize("dataset", ["array", "folder", "FFHQ", "CelebAHQ"])
def test_without_a_path_the_current_folder_is_not_read(tmp_path, monkeypatch, dataset):
    """It is not the user who chose such a data set, if the config comes from a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-r03.tfrecords").write_bytes(bytes(16))
    refused("data.path", datasets.load, tiny.config(**{"data.dataset": dataset}).data, "train")


NESTED = "[" * 400 + "]" * 400
DAMAGED = {
    "list": '{"model": []}',
    "text": '{"data": "a"}',
    "deep object": '{"model": ' + '{"a": ' * 400 + "1" + "}" * 401,
    "nested value": json.dumps(content(**{"model.ch_mult": [[1]]})),
    "nested field": json.dumps(content(**{"eval.features": {"a": "pickle:loads"}})),
    "twice": '{"seed": 1, "seed": 2}',
    "number of another type": json.dumps(content(**{"optim.lr": 10**400})),
    "NaN": json.dumps(content(**{"optim.lr": float("nan")})),
    "digits": '{"seed": ' + "9" * 5000 + "}",
    "list for text": json.dumps(content(**{"eval.features": ["pickle:loads"]})),
    "null character": json.dumps(content(**{"data.path": "a\0"})),
    "dotted": json.dumps(content() | {"eval.features": "pickle:loads"}),
    "method": json.dumps(content(**{"model.items": 1})),
    "control characters": json.dumps(content(**{"model.a\x1b[2J\nError": "\x1b[2J\u202e"})),
    "name of code": json.dumps(content(**{"model.name": "os:system"})),
    "long word": json.dumps(content(**{"data.category": "a" * 1000})),
    "rule": json.dumps(content(**{"guidance.interval": [2.0, 1.0]})),
    "no network": "{}",
    **{f"no {name}": json.dumps(content(without=name)) for name in ("num_scales", "nf", "ch_mult")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_config_is_one_line_that_names_the_file(tmp_path, kind):
    for name in [*DAMAGED][:: 1 if kind == "config.json" else 4]:
        path = write(tmp_path / "theirs", kind, DAMAGED[name])
        for load in (load_config, ss.load):
            given = path.parent if load is ss.load and kind == "config.json" else path
            with pytest.raises(InputError) as caught:
                load(given)
            message = str(caught.value)
            assert message.isprintable(), name
            assert len(message) < 1500, name
            assert str(given) in message, name


def test_messages_escape_control_characters(capfd, monkeypatch):
    assert str(InputError("a\x1b[2J\r\n\u202eb")) == "a\\x1b[2J\\r\n\\u202eb"

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit):
        errors.fail("a\x1b")
    assert capfd.readouterr().err == "Error: a\\x1b\n"
    assert str(InputError("a" * 10**6 + "\nb")) == "a" * errors.MAX_LINE + " ...\nb"
