"""The studies: verdicts in closed form, cached results, distances, and each page at tiny size."""

from __future__ import annotations

import argparse
import importlib
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.tables import block, read_table
from configs.default import complete
from configs.validation import validated
from sde_lib import VPSDE
from studies import (
    claims_measured,
    claims_table,
    common,
    distances,
    inverse_problems,
    mixtures,
    sampling,
)
from studies.claims_checks import Check, Measured, Study, larger, smaller, summary, table
from studies.claims_networks import NETWORKS
from studies.common import FAILS, HOLDS, UNKNOWN, Estimate, combine, log_ratio, verdict
from tests import mixture, tiny
from tests.documented import ROOT

# --- verdicts ---


def test_verdicts_of_gaussian_estimates():
    """The frequencies of the verdicts are those of a normal distribution."""
    rng, mean, stderr, margin, count = np.random.default_rng(0), 0.3, 0.2, 0.1, 4000
    draws = mean + stderr * rng.normal(size=count)
    found = [verdict(Estimate(value, stderr), margin) for value in draws]
    shift = (mean - margin) / stderr
    expected = {HOLDS: norm.cdf(shift - 2), FAILS: norm.cdf(-shift - 2)}
    expected[UNKNOWN] = 1 - sum(expected.values())
    for name, probability in expected.items():
        error = np.sqrt(probability * (1 - probability) / count)
        assert abs(found.count(name) / count - probability) < 4 * error, name


def test_combined_error_covers_seeds_and_samples():
    """The squared error is (spread^2 + 2 stderr^2) / seeds in expectation, above the true one."""
    rng, spread, stderr, seeds = np.random.default_rng(1), 0.3, 0.4, 3
    of_seeds = rng.normal(size=(3000, seeds)) * spread
    values = of_seeds + rng.normal(size=of_seeds.shape) * stderr
    found = [combine([Estimate(value, stderr) for value in row]) for row in values]
    square = np.mean([each.stderr**2 for each in found])
    assert square == pytest.approx((spread**2 + 2 * stderr**2) / seeds, rel=0.1)
    assert square > np.var([each.value for each in found])
    assert combine([Estimate(1.0, 0.5)]) == Estimate(1.0, 0.5)


def test_error_of_a_ratio():
    """It is the standard deviation of the logarithm for small errors."""
    rng, a, b = np.random.default_rng(2), Estimate(2.0, 0.02), Estimate(0.5, 0.01)
    draws = [each.value + each.stderr * rng.normal(size=20_000) for each in (a, b)]
    found = log_ratio(a, b)
    assert found.value == pytest.approx(np.log(4))
    assert found.stderr == pytest.approx(np.log(draws[0] / draws[1]).std(), rel=0.03)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.12345, 0.0123), "0.123 +- 0.012"),
        (Estimate(12.3, 4.56), "12.3 +- 4.6"),
        (Estimate(1234.5, 67), "1234 +- 67"),
        (Estimate(0.25, 0), "0.25"),
    ],
)
def test_estimates_in_tables(estimate, text):
    assert str(estimate) == text


# --- cached results and networks ---


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A checkout of a module that imports another one; returns a function to the key of the first.

    Its arguments are new texts of files.
    """

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
        common._code.cache_clear()
        return common.key({"n": 1}, "first")

    monkeypatch.setattr(common, "ROOT", tmp_path)
    write(first="import second\nfrom progress import line\n", second="A = 1\n", third="B = 1\n")
    yield write
    common._code.cache_clear()


def test_keys_depend_on_the_code_that_is_imported(code):
    """Not on comments, docstrings, other modules, or those without an effect on results."""
    plain = code()
    same = {"second": '"""Text."""\n# A comment\nA = 1\n', "third": "B = 2\n"}
    assert code(**same, progress="C = 1\n") == plain
    others = [{"second": "A = 2\n"}, {"first": "import second, third\n"}, {"third": "B = 3\n"}]
    found = [code(**each) for each in others]
    assert len({plain, *found}) == 4
    assert common.key({"n": 2}, "first") != found[-1]


def test_training_and_measuring_know_their_code():
    """The hash of training covers networks and losses; that of measuring, samplers, too."""
    found = {module: common._code(module) for module in ("training", "studies.claims_measured")}
    assert len(set(found.values())) == 2
    for name in ("losses", "models.ncsnpp", "solvers.single_step", "studies.distances"):
        assert common._path(name), name


def test_networks_are_trained_once_and_share_their_programs(tmp_path, monkeypatch):
    """A second call loads what the first one trained; a stopped one is continued."""
    trained, steps = [], [2, 6, 6]

    def train(config, workdir):
        trained.append(config.seed)
        tiny.untrained(workdir, seed=config.seed)
        return type("State", (), {"step": steps[len(trained) - 1]})

    monkeypatch.setattr(common.training, "train", train)
    first, second = (complete(tiny.config(seed=seed)) for seed in (0, 1))
    with pytest.raises(KeyboardInterrupt):
        common.train(first, tmp_path)
    folders = [common.train(config, tmp_path) for config in (first, first, second)]
    assert trained == [0, 0, 1]
    assert folders[0] == folders[1] != folders[2]
    models = [common.load(folder) for folder in folders]
    assert models[0] is models[1]
    assert models[0].score.apply == models[2].score.apply


@pytest.mark.parametrize("name", NETWORKS)
def test_configs_of_networks(name):
    """They are valid, and those that are compared have the same budget and data."""
    network = NETWORKS[name]
    config, plain = validated(network.make_config(3), 1), NETWORKS["VP"].make_config(3)
    assert config.seed == 3
    assert config.training.batch_size == plain.training.batch_size
    assert config.data.image_size == (8 if network.is_repeated else 16)
    assert name.endswith(config.data.dataset.replace("FASHION_", "")) != network.is_repeated
    factor = config.training.n_iters / plain.training.n_iters
    assert factor == (3 if name.endswith("longer") else 1 if network.snapshots == 2 else 0.5)


# --- claims ---


def test_checks_and_their_summary():
    """Verdicts of all seeds and of either half: the same, opposite, undecided and not measured."""

    def seeds(*values):
        return [Estimate(value, 0.01) for value in values]

    checks = [
        smaller("a ratio", "1 against 2", seeds(1, 1), seeds(3, 3), 2.0),
        larger("its inverse", "2 against 1", seeds(1, 1), seeds(3, 3)),
        Check("an amount", "some", seeds(1, 1), 0.0, shown=(seeds(1, 1), seeds(3, 3))),
        Check("opposite", "some", seeds(1, 1, -1, -1), 0.0),
        Check("one seed", "some", seeds(1), 0.0),
        Check("a gap", "none", [], 1.0),
    ]
    lines = table(checks)
    shown = "1.0000 +- 0.0071 against 3.0000 +- 0.0071"
    assert f"| a ratio | 1 against 2 | {shown} | ratio 3.000 +- 0.022 | 2 | holds |" in lines[2]
    assert f"| {shown} | ratio 0.3333 +- 0.0025 | 1 | does not hold | does" in lines[3]
    page = common.tables.set_block("", "claim 1", "\n".join(lines))
    halves = {row["claim"]: (row["verdict"], row["halves"]) for row in read_table(page, "claim")}
    assert halves["an amount"] == ("holds", "holds, holds")
    assert halves["opposite"] == ("cannot tell", "holds, does not hold")
    assert halves["one seed"] == ("holds", "")
    assert halves["a gap"] == ("not measured", "")
    assert summary(page, ["Title"])[2:] == [
        "| 1. Title | 3 | 1 | 1 | 1 | 3 of 4 | 1 |",
        "| all | 3 | 1 | 1 | 1 | 3 of 4 | 1 |",
    ]


class FakeStudy(Study):
    """Measures nothing: every number is 1, with the number of seeds that the networks have."""

    def measure(self, function, *networks, **arguments):
        uses = [getattr(use, "name", use) for use in networks]
        for name in uses:
            assert name in NETWORKS or (ROOT / f"{name}.safetensors").exists(), name
        used.update(uses)
        entries = function.__doc__
        assert entries
        assert callable(getattr(claims_measured, function.__name__))
        return Measured([Everything()] * (2 if all(NETWORKS.get(n) for n in uses) else 1))


class Everything(dict):
    """Has every entry."""

    def __missing__(self, key):
        return [1.0, 0.1]


used: set[str] = set()


def test_the_claims_and_the_page_have_the_same_rows(tmp_path):
    """With the same margins, papers' figures and order; all networks are used."""
    page = (ROOT / "docs" / "claims.md").read_text().replace("colours", "colors")
    study = FakeStudy(tmp_path, [0, 1])
    columns = "claim", "paper", "margin"
    for number, make in enumerate(claims_table.CLAIMS.values(), 1):
        written = read_table(block(page, f"claim {number}"), "claim")
        found = [dict(zip(written[0], each.cells())) for each in make(study)]
        for name in columns:
            assert sorted(row[name] for row in found) == sorted(row[name] for row in written)
    assert NETWORKS.keys() <= used
    assert (
        summary(page, list(claims_table.CLAIMS))
        == block(page, "summary").strip().splitlines()[2:-2]
    )


@pytest.mark.slow
def test_command_of_the_claims(tmp_path):
    """The whole program at tiny size, and resumed."""
    page = tmp_path / "claims.md"
    page.write_text((ROOT / "docs" / "claims.md").read_text())
    command = [sys.executable, "-m", "studies.claims", f"--folder={tmp_path}", "--tiny"]
    command += ["--claim=6", "--seeds=2", f"--page={page}"]
    subprocess.run(command, check=True, cwd=ROOT)
    rows = read_table(block(page.read_text(), "claim 6"), "claim")
    assert rows[0]["halves"]
    assert rows[0]["verdict"] != "not measured"
    text = page.read_text()
    again = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert "measuring codes of VP and" not in again.stdout  # Other data need not be installed.
    assert page.read_text() == text


# --- distances and mixtures ---


def test_sliced_distance_of_a_shift():
    """All quantiles along a direction u move by shift . u; their mean square has a closed form."""
    rng, shift = np.random.default_rng(0), np.linspace(0.1, 0.4, 4)
    x = rng.normal(size=(500, 4))
    quantiles = distances.weighted_quantiles(x, np.ones(500))
    expected = np.sqrt(np.mean((shift @ distances.directions(4)) ** 2))
    assert distances.sliced_distance(quantiles, x) == pytest.approx(0, abs=1e-12)
    assert distances.sliced_distance(quantiles, x + shift) == pytest.approx(expected)


def test_weights_stand_for_copies():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    weights = np.where(x[:, 0] > 0, 3.0, 1.0)
    weighted = distances.weighted_quantiles(x, weights)
    copies = np.concatenate([x, x[x[:, 0] > 0], x[x[:, 0] > 0]])
    assert distances.sliced_distance(weighted, copies) < 0.02
    assert distances.sliced_distance(weighted, x) > 0.2


def test_score_and_quantiles_of_a_mixture():
    """The score is that of `tests.mixture`, at equal and at different times."""
    other, sde = mixture.make(3, (2, 2, 1)), VPSDE()
    variances = np.repeat(np.asarray(other.stds)[:, None] ** 2, 4, 1)
    found = mixtures.Mixture(np.asarray(other.means).reshape(3, 4), variances, (2, 2, 1))
    x = jax.random.normal(jax.random.key(0), (5, 2, 2, 1))
    for t in (jnp.full(5, 0.3), jnp.linspace(0.01, 1, 5)):
        expected = other.score(sde)(x, t)
        np.testing.assert_allclose(found.score(sde)(x, t), expected, rtol=2e-3, atol=2e-3)
    samples = found.sample(0, 20_000)
    assert distances.sliced_distance(found.quantiles(2000), samples) < 0.02


def test_digits_are_recognized_and_their_floor_is_small():
    """The classifier of clean digits, and the distance of training digits to held-out ones."""
    model = common.load(ROOT / "zoo" / "digits_vp.safetensors")
    held_out = distances.held_out(model, 200)
    images = model.to_images(model.from_images(held_out))
    labels = np.asarray(common.experiment_of(model).test.labels)
    chosen = np.linspace(0, len(labels) - 1, 200).round().astype(int)
    assert (distances.classes(model, images) == labels[chosen]).mean() > 0.9
    train = np.asarray(common.experiment_of(model).train.batch(np.arange(1000)).pixels)
    near = distances.distance(model, np.asarray(model.from_images(train)))
    far = distances.distance(model, np.asarray(model.from_images(train)) / 2)
    assert near.value < 0.1 < far.value


# --- the other pages, once at tiny size ---


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Runs a study with tiny networks; returns the blocks that it writes, by name."""
    written: dict[str, list[str]] = {}

    def train(config, folder):
        changed = {"model.nf": 8, "model.ch_mult": (1,), "model.num_scales": 21}
        config.unlock().update_from_flattened_dict(changed)
        return tiny.untrained(tmp_path / str(config.training.sde), **_changes(config))

    def run(name, options, **constants):
        module = importlib.import_module(f"studies.{name}")
        for key, value in constants.items():
            monkeypatch.setattr(module, key, value)
        chosen = module.OPTIONS | options | {"folder": str(tmp_path), "write": True}
        module.main(argparse.Namespace(**chosen))
        return written

    monkeypatch.setattr(common, "train", train)
    monkeypatch.setattr(common, "write_blocks", lambda page, blocks: written.update(blocks))
    return run


def _changes(config):
    return {"model.num_scales": 21, "training.sde": config.training.sde}


@pytest.mark.slow
def test_page_of_samplers(page, tmp_path, monkeypatch):
    sde = {"VP": sampling.SDES["VP"]}
    monkeypatch.setattr(sampling, "plot", lambda *_: None)
    found = page("sampling", {"samples": 100}, SDES=sde, BUDGETS=(10, 20), CANDIDATES=("deis",))
    assert found.keys() >= {"trained", "VP"}
    text = "\n".join(found["VP"])
    assert "| `restart` | " in text
    assert read_table(text, "sampler")[2]["sampler"] == "ode"
    assert "the config's own" in "\n".join(found["trained"])


def test_verdicts_on_samplers():
    """The margin is 10 % of the distance of the config's own sampler."""
    own = Estimate(1.0, 0.03)
    errors = {0.89: "better", 0.95: "as good", 1.05: "cannot tell", 1.3: "worse"}
    for value, expected in errors.items():
        assert sampling.verdict(Estimate(value, 0.04), own) == expected
        assert 2 * math.hypot(0.03, 0.04) == pytest.approx(0.1)


@pytest.mark.slow
def test_page_of_likelihoods(page):
    constants = {"TOLERANCES": (1e-2,), "PROBES": (1, 4), "CHANGES": {"tolerance": (1e-2,)}}
    found = page("likelihood", {"images": 2, "rounds": 1}, **constants)
    rows = read_table("\n".join(found["accuracy"]), "Problem")
    assert [row["tolerance"] for row in rows] == ["official", "0.01"] * 4
    assert all(float(row["error"]) < 0.05 for row in rows[:6])  # The mixtures have exact scores.
    assert len(read_table("\n".join(found["sensitivity"]), "")) == 1 + 4 + 1


@pytest.mark.slow
def test_page_of_inverse_problems(page, monkeypatch):
    monkeypatch.setattr(inverse_problems, "plot_gaussian_errors", lambda path: None)
    methods = {"ddrm": inverse_problems.METHODS["ddrm"]}
    constants = {
        "SDES": {"VP": VPSDE()},
        "METHODS": methods,
        "STEPS": {"ddrm": 50},
        "CALIBRATED": (20, 20),
        "SAMPLES": 2,
    }
    found = page("inverse_problems", {"images": 2}, **constants)
    assert found.keys() == {"gaussian", "calibration", "digits"}
    (row,) = read_table("\n".join(found["gaussian"]), "method")
    mean, covariance = map(float, row["VP: mask, noise 0.2"].split(" / "))
    assert mean < 0.2
    assert covariance < 0.2
    assert len(read_table("\n".join(found["digits"]), "method")) == 4


def test_quality_of_reconstructions():
    """Images in [-1, 1] that are off by 0.2 have a PSNR of 20 dB; the mean of both is exact."""
    truth = jnp.zeros((3, 8, 8, 1))
    psnr, of_mean, ssim = inverse_problems.quality(np.stack([truth + 0.2, truth - 0.2]), truth)
    assert psnr == pytest.approx(20, abs=0.1)
    assert of_mean > 60
    assert 0.9 < ssim < 1
