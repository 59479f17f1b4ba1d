"""The data of a report, and the command that makes it."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import report
from errors import InputError
from report import data, measures
from report.training_log import Curve
from tests import evaluated

ROOT = Path(__file__).parents[1]


def test_report_json(reported):
    text = (reported / "eval" / "report.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)  # There is no NaN.
    first, second = content["checkpoints"]
    assert (first["number"], second["number"]) == (1, 2)
    assert content["unfinished"] == ["checkpoint_10"]
    assert first["results"]["bpd"]["solver_error"] is None
    assert first["sampling"] == {
        "nfe": {"mean": pytest.approx(208 / 12), "least": 16, "most": 20},
        "images_per_second": 2.0,  # of the second round; the first one compiled
        "compilation_included": False,
    }
    names = ("samples.png", "real.png", "trajectory.png")
    assert first["pictures"] == [f"checkpoint_1/{name}" for name in names]
    histogram = first["bpd_histogram"]
    per_image = np.arange(40) / 40 + 0.5  # the mean of both passes; one more image failed
    assert sum(histogram["counts"]) == 40
    assert histogram["mean"] == pytest.approx(per_image.mean())
    assert (histogram["edges"][0], histogram["edges"][-1]) == pytest.approx((0.5, per_image.max()))
    assert content["curves"]["training"]["steps"] == list(range(10, 210, 10))
    assert content["config"]["data"]["dataset"] == evaluated.HOSTILE


def test_measures_of_version_0_5_1():
    found = measures.of(evaluated.results(1))
    assert [measure["name"] for measure in found] == [
        "held-out loss",
        "bits/dim, test images",
        "bits/dim, test images, bound",
        *(f"{name} ({evaluated.HOSTILE}-1a2b3c4d, n = 12)" for name in ("FD_n12", "KID")),
        *(f"{name} ({evaluated.HOSTILE}-1a2b3c4d, n = 12)" for name in ("precision", "recall")),
    ]
    assert found[1] == {
        "name": "bits/dim, test images",
        "value": 3.0,
        "stderr": 0.0123,
        "images": 40,
        "note": "1 images failed and are excluded",
    }
    assert "not comparable" in found[3]["note"]


def test_measures_are_those_of_results_json():
    measure = {"name": "a", "value": 1.0, "stderr": None, "images": 2, "note": "b"}
    assert measures.of(evaluated.results(1) | {"measures": [measure]}) == [measure]


def test_an_evaluation_of_less(tmp_path):
    """What is missing (images, times, curves, config, environments) is stated or left out."""
    folder = tmp_path / "less" / "checkpoint_3"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match="less has no results of an evaluation; run --mode=eval"):
        report.write(tmp_path, "less")
    samples = {"images": 4, "nfe": 7.0}
    measure = {"name": "FID", "value": None, "stderr": None, "images": 4, "note": ""}
    content = {"step": 5, "samples": samples, "measures": [measure]}
    (folder / "results.json").write_text(json.dumps(content))
    np.savez(folder / "samples_0.npz", nfe=np.full(4, 7))
    page = report.write(tmp_path, "less").read_text()
    content = json.loads((tmp_path / "less" / "report.json").read_text())
    assert content["checkpoints"][0]["sampling"]["images_per_second"] is None
    for words in (
        "not measured",
        "no training curves",
        "Not recorded",
        "0 fields",
        "an experiment without a config",
    ):
        assert words in page


def test_measures_that_are_not_finite_are_not_plotted(tmp_path):
    for number in (1, 2):
        folder = tmp_path / "eval" / f"checkpoint_{number}"
        folder.mkdir(parents=True)
        values = {"FID": 3.0 if number == 1 else math.nan, "FD": math.inf}
        found = [
            {"name": name, "value": value, "stderr": None, "images": 4, "note": ""}
            for name, value in values.items()
        ]
        (folder / "results.json").write_text(json.dumps({"step": number, "measures": found}))
    page = report.write(tmp_path).read_text()
    assert page.count("<svg") == 1
    assert "FID by training step: FID" in page


def test_the_command_makes_the_same_report_again(reported):
    files = [reported / "eval" / name for name in ("report.html", "report.json")]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    flags = [
        "--config=configs/vp/digits_ddpmpp_continuous.py",
        "--mode=report",
        f"--workdir={reported}",
    ]
    finished = subprocess.run(
        [sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout == f"{files[0]}\n"
    assert [path.read_bytes() for path in files] == before


def test_other_processes_write_no_report(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert report.write(tmp_path) == tmp_path / "eval" / "report.html"
    assert not list(tmp_path.iterdir())


def test_the_speed_of_a_single_round_includes_its_compilation(tmp_path):
    times = {"seconds": np.array([3.0]), "first": np.array([True])}
    np.savez(tmp_path / "samples_0.npz", nfe=np.ones(6), **times)
    speed = data._sampling(tmp_path, 6)
    assert (speed["images_per_second"], speed["compilation_included"]) == (2.0, True)


def test_environments_are_noted_once(tmp_path):
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    for _ in range(2):
        report.note_environment(tmp_path, mesh)
    (environment,) = json.loads((tmp_path / "environments.json").read_text())
    assert environment["devices"] == f"{jax.device_count()} x cpu"
    assert environment["jax"] == jax.__version__


# --- damaged files ---


def change(path, **changes):
    """Change or remove (None) entries of a results.json or config.json."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def remake(path, content=None):
    """Replace a file by other content, or by a folder."""
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)


DAMAGE = [
    ("checkpoint_1/results.json", lambda path: remake(path, b""), "cannot be read as JSON"),
    ("checkpoint_1/results.json", lambda path: remake(path, b"[]"), "a list instead of an object"),
    ("checkpoint_1/results.json", remake, "is a folder; it must be a regular file"),
    ("checkpoint_1/results.json", lambda path: change(path, step=None), "has no 'step'"),
    ("checkpoint_1/results.json", lambda path: change(path, bpd=3), "'bpd' is an integer instead"),
    ("checkpoint_1/results.json", lambda path: change(path, loss={}), "'loss' has no 'mean'"),
    ("checkpoint_1/results.json", lambda path: change(path, measures=[{}]), "has no 'value'"),
    ("checkpoint_1/bpd_1.npz", lambda path: path.unlink(), r"bits/dim of \d+ images, .* states 82"),
    ("checkpoint_1/bpd_1.npz", lambda path: remake(path, b""), "bpd_1.npz cannot be read as .npz"),
    ("checkpoint_1/bpd_1.npz", lambda path: np.savez(path, a=np.ones(3)), "bpd_1.npz lacks bpd"),
    ("checkpoint_1/samples_1.npz", lambda path: path.unlink(), "of 8 images, .* states 12"),
    ("checkpoint_1/samples_1.npz", remake, "samples_1.npz is a folder"),
    ("config.json", lambda path: remake(path, b"{"), "config.json cannot be read as JSON"),
    ("config.json", lambda path: change(path, model=None), "its content has no 'model'"),
    ("config.json", lambda path: change(path, data=[]), "'data' is a list instead of an object"),
    ("../metrics.jsonl", remake, "metrics.jsonl is a folder; it must be a regular file"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_damaged_files_are_named(tmp_path, name, damage, message):
    evaluated.write_workdir(tmp_path)
    damage(tmp_path / "eval" / name)
    with pytest.raises(InputError, match=message) as caught:
        data.gather(tmp_path / "eval", tmp_path)
    assert "\n" not in str(caught.value)


def test_strays_and_damaged_environments_do_not_matter(tmp_path, caplog):
    evaluated.write_workdir(tmp_path)
    folder = tmp_path / "eval"
    expected = data.gather(folder, tmp_path)
    (folder / "checkpoint_x").mkdir()
    (folder / "checkpoint_1" / "samples_x.npz").write_text("")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for line in ('{"step": -1, "training/loss": 1}', '{"step": 1e9}', '{"step": true}', "[1]"):
            file.write(line + "\n")
        file.write('{"step": 5, "training/loss": "text", "held_out/loss": NaN}\n')
        file.write('{"step": 6, "training/loss": 1' + "0" * 400 + "}\n")
    assert data.gather(folder, tmp_path) == expected
    remake(folder / "environments.json", b'["text"]')
    assert data.gather(folder, tmp_path) == expected | {"environments": []}
    assert "environments.json is damaged: an entry of its content is a string" in caplog.text
    report.note_environment(folder, jax.sharding.Mesh(jax.devices(), ("data",)))
    assert len(json.loads((folder / "environments.json").read_text())) == 1


def test_rounds_of_an_earlier_evaluation_of_more_images(tmp_path):
    """They do not count, also not in place of a missing round."""
    evaluated.write_workdir(tmp_path)
    folder = tmp_path / "eval" / "checkpoint_1"
    expected = data.gather(tmp_path / "eval", tmp_path)
    for name in ("samples", "bpd"):
        last = len(list(folder.glob(f"{name}_*.npz")))
        shutil.copy(folder / f"{name}_0.npz", folder / f"{name}_{last}.npz")
    assert data.gather(tmp_path / "eval", tmp_path) == expected
    (folder / "samples_1.npz").unlink()
    with pytest.raises(InputError, match="has rounds with samples of"):
        data.gather(tmp_path / "eval", tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: remake(path, b"\x89PNG\r\n\x1a\n"), remake]
)
def test_pictures_that_cannot_be_read_are_shown_as_missing(tmp_path, damage):
    evaluated.write_workdir(tmp_path)
    damage(tmp_path / "eval" / "checkpoint_1" / "samples.png")
    page = report.write(tmp_path).read_text()
    assert page.count("samples.png is missing or damaged: ") == 1
    assert page.count("data:image/png;base64,") == 5  # of three pictures for each checkpoint


def test_thin_curves_keep_the_mean():
    curve = Curve(np.arange(1000), np.sin(np.arange(1000.0)))
    thinned = data.thin(curve, 50)
    assert len(thinned.steps) == len(thinned.values) == 50
    assert thinned.values.mean() == pytest.approx(curve.values.mean())
    assert data.thin(Curve(np.array([1, 2]), np.array([4.0, 3.0])), 50).steps.tolist() == [1, 2]
    assert not len(data.thin(Curve(np.array([]), np.array([])), 50).steps)
