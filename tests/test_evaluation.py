"""Evaluation: results on disk, restarts in the middle, and images that depend on (seed, number) alone."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import evaluation
import experiment as experiments
import training
from errors import InputError
from tests import tiny


def config(**changes):
    options = {"eval.enable_bpd": True, "eval.enable_sampling": True, "training.n_iters": 4}
    options |= {"eval.bpd_num_repeats": 2, "eval.bpd_probes": 2, "eval.bpd_tolerance": 3e-3}
    options |= {"eval.enable_metrics": True}
    return tiny.config(**options | changes)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("evaluated"))
    training.train(config(), workdir)
    return workdir, evaluation.evaluate(config(), workdir)


def test_results(evaluated, capsys):
    workdir, results = evaluated
    folder = f"{workdir}/eval/checkpoint_1"
    with open(f"{folder}/results.json") as file:
        on_disk = json.load(file)
    assert on_disk == results[1]
    assert on_disk["step"] == 4
    assert (on_disk["loss"]["images"], on_disk["bpd"]["images"], on_disk["samples"]["images"]) == (359, 359, 10)
    read = lambda name: np.concatenate([np.load(f"{folder}/bpd_{i}.npz")[name] for i in range(6)]).reshape(2, 359)
    bpd, bound, spread = read("bpd"), read("bound"), read("probe_stderr")
    assert on_disk["bpd"]["mean"] == pytest.approx(bpd.mean(), rel=1e-6)
    assert on_disk["bpd"]["stderr"] == pytest.approx(bpd.mean(0).std(ddof=1) / np.sqrt(359), rel=1e-6)
    assert on_disk["bpd"]["bound"]["mean"] == pytest.approx(bound.mean(), rel=1e-6)
    assert on_disk["bpd"]["probe_stderr"] == pytest.approx(np.sqrt((spread**2).sum()) / (2 * 359), rel=1e-6)
    assert 0 < on_disk["bpd"]["solver_error"] < 0.05
    # Untrained, it takes pixels for independent and nearly normal: worse than uniform grey levels, log2(17) bits.
    assert 4 < on_disk["bpd"]["mean"] < 14
    samples = np.load(f"{folder}/samples_0.npz")["samples"]
    assert (samples.shape, samples.dtype) == ((10, 8, 8, 1), np.uint8)
    assert Image.open(f"{folder}/samples.png").size == (4 * 66, 3 * 66)
    assert on_disk["metrics"]["images"] == 10
    assert on_disk["metrics"]["frechet"]["value"] > 1


def test_a_restart_does_only_what_is_missing(evaluated, monkeypatch):
    workdir, results = evaluated
    folder = f"{workdir}/eval/checkpoint_1"
    before = {name: np.load(f"{folder}/{name}.npz") for name in ("bpd_4", "loss_1", "samples_0")}
    for name in before:
        __import__("os").remove(f"{folder}/{name}.npz")
    done, save = [], evaluation.write_atomically
    for module in (evaluation, experiments):
        monkeypatch.setattr(module, "write_atomically", lambda path, write: done.append(path.stem) or save(path, write))
    again = evaluation.evaluate(config(), workdir)
    assert again == results
    assert sorted(set(done)) == ["bpd_4", "config", "loss_1", "results", "samples", "samples_0"]
    for name, arrays in before.items():
        for key in arrays:
            assert np.array_equal(arrays[key], np.load(f"{folder}/{name}.npz")[key])


def test_images_depend_on_seed_and_number_alone(evaluated):
    """Not on the batch size or the number of devices, up to rounding: at most one grey level of 17."""
    params = experiments.Experiment(config()).init_params()
    images = {}
    for devices, first, count in ((1, 0, 6), (2, 0, 6), (8, 2, 3)):
        experiment = experiments.Experiment(config(**{"training.batch_size": 16}), jax.devices()[:devices])
        images[devices], nfe, _ = experiment.sample_images(jax.device_get(params), first, count)
        assert nfe.tolist() == [21] * count
    assert np.abs(images[1].astype(int) - images[2]).max() <= 16
    assert np.abs(images[1][2:5].astype(int) - images[8]).max() <= 16
    assert np.abs(images[1][0].astype(int) - images[1][1]).max() > 30


def test_bits_per_dim_do_not_depend_on_the_batch(evaluated):
    results = evaluation.evaluate(
        config(**{"eval.batch_size": 200, "eval.enable_sampling": False}), evaluated[0], "other"
    )
    assert results[1]["bpd"]["mean"] == pytest.approx(evaluated[1][1]["bpd"]["mean"], abs=1e-4)
    assert "metrics" not in results[1]  # Without samples there is nothing to measure.


def test_an_eval_folder_of_other_settings_is_refused(evaluated):
    with pytest.raises(InputError, match=r"name another folder or mend:\n  eval.batch_size: 120 there, 60 now"):
        evaluation.evaluate(config(**{"eval.batch_size": 60}), evaluated[0])
    with pytest.raises(InputError, match=r"guidance.scale: 4.0 there, 3.0 now"):
        evaluation.evaluate(config(**{"guidance.scale": 3.0}), evaluated[0])


def test_a_network_of_another_config_is_refused(evaluated):
    with pytest.raises(InputError, match=r"model.nf: 8 there, 4 now"):
        evaluation.evaluate(config(**{"model.nf": 4}), evaluated[0], "third")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("eval.bpd_trace", "cauchy", "eval.bpd_trace = 'cauchy' is unknown; known: Gaussian, Rademacher, exact"),
        ("eval.bpd_t_min", 1.5, "eval.bpd_t_min = 1.5 must lie between 0 and 1.0"),
        ("eval.bpd_tolerance", 0.0, "eval.bpd_tolerance = 0.0 above 0"),
        ("training.importance_weighting", True, "needs training.likelihood_weighting = True"),
    ],
)
def test_settings_of_the_likelihood(evaluated, field, value, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluation.evaluate(config(**{field: value}), evaluated[0], "fourth")


def test_nothing_to_evaluate(evaluated, tmp_path):
    with pytest.raises(InputError, match="does not exist; train first"):
        evaluation.evaluate(config(), str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no checkpoint from eval.begin_ckpt = 1 .* it has: none"):
        evaluation.evaluate(config(), str(tmp_path))
    with pytest.raises(InputError, match="it has: 1"):
        evaluation.evaluate(config(**{"eval.begin_ckpt": 7}), evaluated[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ve.digits_ncsnpp_continuous", "subvp.digits_ddpmpp_continuous"])
def test_the_other_sdes(tmp_path, name):
    """Train, score and sample with the VE SDE (NCSN++, predictor and corrector) and the sub-VP SDE."""
    c = tiny.config(name, **{"training.n_iters": 2, "training.snapshot_freq": 2, "eval.enable_loss": False})
    training.train(c, str(tmp_path))
    result = evaluation.evaluate(c, str(tmp_path))[1]
    assert result["bpd"]["failed"] == result["bpd"]["bound"]["failed"] == 0
    assert result["bpd"]["probe_stderr"] is None  # There is but one probe.
    assert result["samples"]["nfe"] == (42 if name.startswith("ve") else 21)


def test_the_ode_sampler(evaluated):
    experiment = experiments.Experiment(config(**{"sampling.method": "ode"}))
    images, nfe, _ = experiment.sample_images(experiment.init_params(), 0, 4)
    assert images.shape == (4, 8, 8, 1)
    assert (nfe > 20).all()
