"""The claims: verdicts in closed form, the cache of results, the networks and the page."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.stats import norm

import sharding
import training
from benchmarks.claims import keys, page, table
from benchmarks.claims.checks import Check, Claim, Measurement, Use, larger, smaller
from benchmarks.claims.common import Sizes
from benchmarks.claims.networks import NETWORKS, Store
from benchmarks.claims.run import Run, measurements
from benchmarks.claims.trainer import Trainer
from benchmarks.claims.verdicts import (
    FAILS,
    HOLDS,
    UNKNOWN,
    Estimate,
    combine,
    log_ratio,
    verdict,
)
from benchmarks.parts import Records
from configs.validation import validated
from experiment import Experiment
from tests import tiny
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
    single = combine([Estimate(1.0, 0.5)])
    assert single == Estimate(1.0, 0.5)


def test_error_of_a_ratio():
    """It is the standard deviation of the logarithm for small errors."""
    rng, a, b = np.random.default_rng(2), Estimate(2.0, 0.02), Estimate(0.5, 0.01)
    draws = [each.value + each.stderr * rng.normal(size=20_000) for each in (a, b)]
    found = log_ratio(a, b)
    assert found.value == pytest.approx(np.log(4))
    assert found.stderr == pytest.approx(np.log(draws[0] / draws[1]).std(), rel=0.03)


# --- the cache ---


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A folder in place of the checkout: a measurement that counts its calls, and its sources."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "part.py").write_text("A = 1\n")
    (tmp_path / "measure_calls.py").write_text(
        "from benchmarks.claims.verdicts import Estimate\n"
        "calls = []\n"
        "def measure(models, seed, **arguments):\n"
        "    calls.append((models, seed, arguments))\n"
        "    return {'x': Estimate(float(len(calls)), 0.1)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    monkeypatch.setattr(keys, "MEASURING", ("library",))
    keys._digest_of.cache_clear()
    yield SimpleNamespace(folder=tmp_path, module=importlib.import_module("measure_calls"))
    del sys.modules["measure_calls"]
    keys._digest_of.cache_clear()


class FakeStore:
    """Networks that are only names; `version` stands for their configs and code."""

    version = 0

    def key(self, name, seed):
        return f"{name} {seed} {self.version}"

    def load(self, name, seed, snapshot):
        return name, seed, snapshot


def test_results_are_used_again_and_stale_ones_never(code, tmp_path):
    """A change of arguments, of a network, or of a source file measures again."""
    store, path = FakeStore(), tmp_path / "results.jsonl"

    def values(**arguments):
        keys._digest_of.cache_clear()
        run = Run(store, Records(path), [5, 6])
        each = Measurement(code.module.measure, (Use("VP"), Use("VE", 1, shift=1)), arguments)
        run.measure([each])
        found = run.numbers([each["x"]])
        assert found is not None
        return [seed[0].value for seed in found]

    assert values(n=1) == values(n=1) == [1, 2]
    models = [[("VP", 5, None), ("VE", 6, 1)], [("VP", 6, None), ("VE", 5, 1)]]
    assert [call[0] for call in code.module.calls] == models
    assert values(n=2) == [3, 4]
    store.version = 1
    assert values(n=1) == [5, 6]
    (code.folder / "library" / "part.py").write_text("A = 2\n")
    assert values(n=1) == [7, 8]
    (code.folder / "library" / "new.py").write_text("B = 3\n")
    assert values(n=1) == [9, 10]
    module = code.folder / "measure_calls.py"
    module.write_text(module.read_text() + "unused = 0\n")
    assert values(n=1) == [11, 12]
    assert values(n=1) == [11, 12]


def test_comments_and_docstrings_are_not_part_of_a_key(code):
    """Only a change of the code changes the key, also one of a string that is used."""
    part = code.folder / "library" / "part.py"

    def key(text):
        part.write_text(text)
        keys._digest_of.cache_clear()
        return keys.key({}, ["library"])

    plain = key("def f(x):\n    return x, 'a'\n")
    assert (
        key('"""Module."""\n# A comment\ndef f(x):\n    """Text."""\n    return x, "a"\n') == plain
    )
    others = ["def f(x):\n    return x, 'b'\n", "def f(x):\n    'a'\n    return 2 * x, 'a'\n"]
    assert len({plain, *map(key, others)}) == 3


def test_keys_of_networks():
    """They differ for all networks and seeds, and those of files depend on their content."""
    store = Store(ROOT)
    found = [store.key(name, seed) for name in NETWORKS for seed in (0, 1)]
    found += [store.key(f"zoo/{name}_vp", 0) for name in ("fashion", "emoji")]
    assert len(set(found)) == len(found)
    assert store.key("zoo/emoji_vp", 0) == store.key("zoo/emoji_vp", 1)
    for source in (*keys.TRAINING, *keys.MEASURING):
        assert (ROOT / source).exists(), source


# --- networks ---


@pytest.mark.parametrize("name", NETWORKS)
def test_configs_of_networks(name):
    """They are valid, and those that are compared have the same budget and data."""
    config = validated(NETWORKS[name].make_config(3), 1)
    plain = NETWORKS["VP"].make_config(3)
    assert config.seed == 3
    assert config.training.batch_size == plain.training.batch_size
    assert config.data.image_size == (8 if NETWORKS[name].is_repeated else 16)
    assert name.endswith(config.data.dataset.replace("FASHION_", "")) != NETWORKS[name].is_repeated
    factor = config.training.n_iters / plain.training.n_iters
    assert factor == (3 if name.endswith("longer") else 1 if NETWORKS[name].snapshots == 2 else 0.5)


@pytest.mark.slow
def test_trainer_computes_what_training_does(tmp_path, monkeypatch):
    """One compiled step serves several seeds, with the parameters of `training.train`.

    Both use one device: other partial sums have other rounding errors, which Adam enlarges where a
    gradient is 0.
    """
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda _=None: make_mesh(jax.devices()[:1]))
    configs = [tiny.config(seed=seed, **{"training.snapshot_freq": 3}) for seed in (0, 1)]
    trainer = Trainer(configs[0])
    for config in configs:
        trainer.train(config, tmp_path / f"own {config.seed}")
        training.train(config, str(tmp_path / f"loop {config.seed}"))
        own, loop = (
            Experiment(config).trained(str(tmp_path / f"{name} {config.seed}"))[1]
            for name in ("own", "loop")
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), own, loop)
    assert trainer.step._cache_size() == 1  # pyright: ignore


# --- the table and the page ---


def test_table():
    """Checks use known networks; nothing is measured twice."""
    claims = table.claims(Sizes())
    assert [claim.number for claim in claims] == list(range(1, 10))
    trained = Run(FakeStore(), Records("absent"), [4, 5, 6]).networks(measurements(claims))
    assert {name for name, _ in trained} == NETWORKS.keys()
    assert trained.count(("VP", 6)) == 1
    for each in measurements(claims):
        json.dumps(dict(each.arguments))
        for use in each.uses:
            assert use.name in NETWORKS or (ROOT / f"{use.name}.safetensors").exists()
            assert use.name not in NETWORKS or (use.snapshot or 1) <= NETWORKS[use.name].snapshots


@pytest.fixture
def measured(code, tmp_path):
    """Claims with fake results, of which one is not measured; and a function to make runs."""
    one, two = (Measurement(code.module.measure, (Use("VP"),), {"n": n}) for n in (1, 2))
    checks = (
        smaller("a ratio", "FID 1 against 2", two["x"], one["x"], 2.0),
        larger("its inverse", "FID 2 against 1", two["x"], one["x"]),
        Check("an amount", "some", two["x"], margin=0.0, values=(one["x"], two["x"])),
        Check("a gap", "none", Measurement(code.module.measure, (Use("VE"),), {})["x"]),
    )
    records = Records(tmp_path / "results.jsonl")

    def run(seeds, first, second):
        found = Run(FakeStore(), records, seeds)
        for each, value in ((one, first), (two, second)):
            for index in range(len(seeds)):
                records.add(found.key(each, index), {"found": {"x": [value, 0.01]}})
        return found

    return [Claim(1, "Title", "Table 1", "How.", checks)], run


def test_page(measured):
    claims, make = measured
    text = page.page(claims, make([0, 1], 3.0, 1.0))
    assert "| a ratio | FID 1 against 2 | 1.0000 +- 0.0071 against 3.0000 +- 0.0071 |" in text
    assert "| ratio 3.000 +- 0.022 | 2 | holds | holds, holds |" in text
    values = "3.0000 +- 0.0071 against 1.0000 +- 0.0071"
    assert f"| an amount | some | {values} | 1.0000 +- 0.0071 | 0 | holds | holds, holds |" in text
    values = "1.0000 +- 0.0071 against 3.0000 +- 0.0071"
    assert f"| its inverse | FID 2 against 1 | {values} | ratio 0.3333 +- 0.0025 | 1 | does" in text
    assert "| a gap | none |  |  | 1 | not measured |  |" in text
    assert "| 1. Title | 2 | 1 | 0 | 1 | 3 of 3 | 0 |" in text


def test_halves_of_the_seeds_are_compared(code, tmp_path):
    """Verdicts of either half: the same, undecided with one half, opposite, and not compared."""
    records = Records(tmp_path / "results.jsonl")
    run = Run(FakeStore(), records, range(4))
    values = {
        "same": (1, 1, 1, 1),
        "undecided": (1, 1, 0, 0),
        "opposite": (1, 1, -1, -1),
        "zoo": (1,),
        "unmeasured": (),
    }
    checks = []
    for name, found in values.items():
        use = Use("zoo/digits_vp" if name == "zoo" else "VP")
        measurement = Measurement(code.module.measure, (use,), {"name": name})
        for index, value in enumerate(found):
            records.add(run.key(measurement, index), {"found": {"x": [value, 0.01]}})
        checks.append(Check(name, "none", measurement["x"], margin=0.0))
    text = page.page([Claim(1, "Title", "Table 1", "How.", tuple(checks))], run)
    ends = {line.split(" | ")[0]: line.split(" | ")[-2:] for line in text.splitlines()}
    assert ends["| same"] == ["holds", "holds, holds |"]
    assert ends["| undecided"] == ["cannot tell", "holds, cannot tell |"]
    assert ends["| opposite"] == ["cannot tell", "holds, does not hold |"]
    assert ends["| zoo"] == ["holds", " |"]
    assert ends["| unmeasured"] == ["not measured", " |"]
    assert "| 1. Title | 2 | 0 | 2 | 1 | 1 of 3 | 1 |" in text
    assert "| all | 2 | 0 | 2 | 1 | 1 of 3 | 1 |" in text


@pytest.mark.slow
def test_command(tmp_path):
    """The whole program at tiny size, and resumed."""
    output = tmp_path / "claims.md"
    command = [sys.executable, "-m", "benchmarks.claims", f"--folder={tmp_path}", "--tiny"]
    command += ["--claim=6", "--seeds=2", f"--output={output}"]
    subprocess.run(command, check=True, cwd=ROOT)
    text = output.read_text()
    counts = [line for line in text.splitlines() if line.startswith("| 6.")]
    assert len(counts) == 1
    assert all(line.split(" | ")[4] == "0" for line in counts)  # Nothing is missing.
    again = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert "training" not in again.stdout
    assert "measuring" not in again.stdout
    assert output.read_text() == text
