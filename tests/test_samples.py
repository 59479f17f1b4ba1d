"""`--mode=sample`: PNG files of a trained model."""

import numpy as np
import pytest
from PIL import Image

from commands import conversion, models, samples
from errors import InputError
from experiment import Experiment
from loading import load_config
from pretrained import Trained
from tests import tiny
from tests.refusal import refused

FAST = tiny.MLP | {"sampling.method": "solver", "sampling.num_steps": 4}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny.untrained(tmp_path_factory.mktemp("samples"), **tiny.MLP)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_images(workdir, monkeypatch, capsys):
    """The files are the experiment's images; more of them need only the further rounds."""
    monkeypatch.setattr(samples, "BATCH", 4)
    config = tiny.config(**FAST)
    folder = samples.sample(config, str(workdir), 6)
    assert folder == workdir / "sample" / "checkpoint_3" / "dpm++_2m_sde-4-seed-42"
    assert "'dpm++_2m_sde', 4 steps on the schedule" in capsys.readouterr().out
    experiment = Experiment(config)
    model = experiment.trained_model(experiment.trained(workdir)[1])
    expected = experiment.draw_images(model, 0, 6).x
    for index in range(6):
        found = np.asarray(Image.open(folder / f"{index:05d}.png"))
        assert np.abs(found.astype(int) - np.asarray(expected[index, ..., 0], int)).max() <= 1
    before = contents(folder)
    (folder / "samples_1.npz").unlink()  # As if the run had been stopped.
    (folder / "00005.png").unlink()
    samples.sample(config, str(workdir), 6)
    assert "1 of 2 rounds to do" in capsys.readouterr().out
    assert contents(folder) == before
    samples.sample(config, str(workdir), 9)
    assert "1 of 3 rounds to do" in capsys.readouterr().out
    after = contents(folder)
    assert len(after) == 9 + 1  # and grid.png
    assert {name: after[name] for name in before if name != "grid.png"}.items() <= before.items()


def test_names_and_seeds(workdir):
    """Another seed or sampler has another folder; other options in the same folder are refused."""
    first = samples.sample(tiny.config(**FAST), str(workdir), 2)
    other = samples.sample(tiny.config(**FAST, seed=1), str(workdir), 2)
    assert other.name == "dpm++_2m_sde-4-seed-1"
    assert contents(first)["00000.png"] != contents(other)["00000.png"]
    config = tiny.config(**FAST, **{"sampling.schedule": "time"})
    with pytest.raises(InputError, match="sampling.schedule: 'log_snr' there, 'time' now"):
        samples.sample(config, str(workdir), 2)
    named = samples.sample(config, str(workdir), 2, folder="mine")
    assert named == first.with_name("mine")


def test_samples_of_a_file(workdir, tmp_path):
    """Half precision moves few gray levels; the paths of the file's author are not in it."""
    config = tiny.config(**FAST, **{"data.path": "/somewhere"})
    target = tmp_path / "net.safetensors"
    conversion.export_checkpoint(config, str(workdir), str(target), average_only=True)
    found = samples.sample(load_config(target), str(tmp_path / "w"), 4, source=str(target))
    assert found == tmp_path / "w" / "sample" / "net" / "dpm++_2m_sde-4-seed-42"
    assert load_config(target).data.path == ""
    expected = samples.sample(config, str(workdir), 4, folder="full_precision")
    for index in range(4):
        a, b = (
            np.asarray(Image.open(each / f"{index:05d}.png"), int) for each in (found, expected)
        )
        assert np.mean(a != b) < 0.05


def test_folders_of_files(tmp_path, monkeypatch):
    """They are named after the file or folder, never the parent of the folder of samples."""
    (tmp_path / "network" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "network" / "inner")
    monkeypatch.setattr(models.pretrained, "read", lambda *_: Trained(0, {}, {}))
    experiment = Experiment(tiny.config())

    def name(source):
        return models.open_model(experiment, "", source=source).folder

    names = {".": "inner", "..": "network", "../b.safetensors": "b", "c/.": "c", "d/../e.pth": "e"}
    assert {source: name(source) for source in names} == names
    refused("--source=/ has no file name that can name a folder", name, "/")


@pytest.mark.parametrize(
    ("message", "count", "options"),
    [
        *((f"--count={n} must be an integer from 1 to 100000", n, {}) for n in (0, -3, 10**5 + 1)),
        ("does not exist", 2, {"workdir": "nothing"}),
        ("no checkpoint_9", 2, {"number": 9}),
        ("classifier does not exist; train it with", 2, {"guidance.classes": (1,)}),
        ("--source", 2, {"source": "nothing", "workdir": "nothing"}),
    ],
)
def test_bad_requests(workdir, tmp_path, message, count, options):
    changes = {name: options.pop(name) for name in list(options) if "." in name}
    folder = str(tmp_path / options.pop("workdir")) if "workdir" in options else str(workdir)
    before = sorted(workdir.rglob("*"))
    refused(message, samples.sample, tiny.config(**FAST, **changes), folder, count, **options)
    assert sorted(workdir.rglob("*")) == before
    assert not list(tmp_path.iterdir())
