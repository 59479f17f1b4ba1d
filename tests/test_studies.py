"""The studies: verdicts in closed form, cached results, distances, and each page at tiny size."""

from __future__ import annotations

import argparse
import functools
import importlib
import subprocess
import types
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.tables import block, read_table, set_block
from configs.default import complete
from configs.validation import validated
from sde_lib import VPSDE
from studies import (
    claims,
    claims_measured,
    common,
    distances,
    floors,
    inverse_problems,
    learned,
    likelihood,
    likelihood_peers,
    table1,
)
from studies.__main__ import outdated
from studies.calibration import modes
from studies.claims_study import NETWORKS, Check, Study, larger, smaller, summary, table
from studies.common import FAILS, HOLDS, UNKNOWN, Estimate, combine, judge, log_ratio
from tests import tiny
from tests.documented import ROOT


def test_verdicts_are_t_tests():
    """At the margin either is wrong in 5 % of cases, also with three seeds; far from it never."""
    rng, margin, count = np.random.default_rng(0), 0.3, 4000
    for seeds, spread, sampling_error in ((3, 0.2, 0.1), (6, 0.2, 0.0), (1, 0.0, 0.2)):
        draws = margin + rng.normal(size=(count, seeds)) * np.hypot(spread, sampling_error)
        found = [combine([Estimate(value, sampling_error) for value in row]) for row in draws]
        at, below, above = (
            [judge(each, margin + shift, seeds)[0] for each in found] for shift in (0, 5, -5)
        )
        for word in (HOLDS, FAILS):
            assert abs(at.count(word) / count - common.LEVEL) < 4 * np.sqrt(0.05 * 0.95 / count)
        assert at.count(UNKNOWN) / count == pytest.approx(0.9, abs=0.03)
        assert (below.count(FAILS) + above.count(HOLDS)) / count == pytest.approx(2, abs=0.05)
    exact = Estimate(0.5, 0.0)
    words = [judge(exact, each, 6) for each in (0.4, 0.6)]
    assert words == [(HOLDS, 0.0), (FAILS, 0.0)]


def test_combined_error_counts_samples_once():
    """The squared error is (spread^2 + stderr^2) / seeds; held-out images add their variance."""
    rng, spread, stderr, seeds = np.random.default_rng(1), 0.3, 0.4, 3
    of_seeds = rng.normal(size=(3000, seeds)) * spread
    values = of_seeds + rng.normal(size=of_seeds.shape) * stderr
    found = [combine([Estimate(value, stderr) for value in row]) for row in values]
    square = np.mean([each.stderr**2 for each in found])
    assert square == pytest.approx((spread**2 + stderr**2) / seeds, rel=0.1)
    assert square == pytest.approx(np.var([each.value for each in found]), rel=0.1)
    assert combine([Estimate(1.0, 0.5)])[:2] == (1.0, 0.5)
    held_out = [1.0, 1.4], [1.2, 1.0]  # Means over seeds of 1.1 and 1.2, with a variance of 0.005.
    both = combine([Estimate(1.2, 0.1, 0.3, each) for each in held_out])
    assert both[:3] == pytest.approx((1.2, np.sqrt(0.005), 0.3))
    ratio = log_ratio(*(Estimate(1.0, 0.1, 0.3, each) for each in held_out))
    assert ratio.resampled == pytest.approx(np.log([1 / 1.2, 1.4]))


def test_holm_correction():
    """The limits are 0.05 / 4, / 3, / 2 and 0.05; the first p that is too large ends them."""
    cases = {(0.01, 0.016, 0.02, 0.2): 0.02, (0.03, 0.01, 0.026, 0.01): 0.01, (0.02, 0.3): 0.02}
    assert {each: common.holm(each) for each in cases} == cases
    assert common.holm([0.03, 0.04]) == 0


def test_error_of_a_ratio():
    """It is the standard deviation of the logarithm for small errors."""
    rng, a, b = np.random.default_rng(2), Estimate(2.0, 0.02), Estimate(0.5, 0.01)
    draws = [each.value + each.stderr * rng.normal(size=20_000) for each in (a, b)]
    found = log_ratio(a, b)
    assert found.value == pytest.approx(np.log(4))
    assert found.stderr == pytest.approx(np.log(draws[0] / draws[1]).std(), rel=0.03)


def test_estimates_in_tables():
    cases = {(0.12345, 0.0123): "0.123 +- 0.012", (12.3, 4.56): "12.3 +- 4.6", (0.25, 0): "0.25"}
    assert {each: str(Estimate(*each)) for each in cases} == cases


def test_verdicts_on_samplers():
    """The excess of a distance of 5 over a floor of 3 is 4, those of 5.41 and 6 are 4.5 and 5.2."""
    own = [Estimate(5.0, 0.1, 3.0)]
    cases = {5.0: HOLDS, 5.41: UNKNOWN, 6.0: FAILS}  # 4 / 4.5 = 0.89, 4 / 5.2 = 0.77
    for value, word in cases.items():
        ratio, verdict, _ = common.judge_ratio(own, [Estimate(value, 0.1, 3.0)], common.AS_GOOD)
        assert verdict == word
        expected = 4 / np.sqrt(value**2 - 9)
        assert float(ratio.split("(")[0]) == pytest.approx(expected, abs=0.005)


def test_keys_depend_on_the_code_that_is_imported(tmp_path, monkeypatch):
    """Not on comments, docstrings, other modules, or those without an effect on results."""
    text = {"first": "import second\nfrom runs import line\n", "second": "A = 1\n"}
    text |= {"third": "B = 1\n", "runs": "line = 1\n"}

    def key(value=1, **changed):
        for name, each in (text | changed).items():
            (tmp_path / f"{name}.py").write_text(each)
        common._code.cache_clear()
        return common.key({"n": value}, "first")

    with monkeypatch.context() as patch:
        patch.setattr(common, "ROOT", tmp_path)
        same = {"second": '"""Text."""\n# A comment\nA = 1\n', "third": "B = 2\n"}
        assert key(**same, runs="line = 2\n") == key()
        lazy = "def f():\n    from third import B\n"
        other = [{"second": "A = 2\n"}, {"first": "import second, third\n"}, {"second": lazy}]
        other += [{"second": lazy, "third": "B = 3\n"}, {"value": 2}]
        assert len({key(), *(key(**each) for each in other)}) == 6
    common._code.cache_clear()
    assert common._code("training") != common._code("studies.claims_measured")


def test_commands_of_pages():
    """Options with other values than their defaults; paths are not published."""
    options = {"folder": "", "tables": [], "font": None, "count": 1, "seeds": 2, "write": False}
    given = options | {"folder": "/secret", "tables": ["a"], "count": 3, "write": True}
    found = common.command("studies.one", options, given)
    assert found == "python -m studies.one --folder=DIR a --count=3 --write"


def test_outdated_blocks_of_pages(tmp_path, monkeypatch):
    """Those without a commit, and those whose code or imports are not as at the commit."""

    def git(*words):
        return subprocess.check_output(["git", "-C", tmp_path, *words], text=True)

    (tmp_path / "studies").mkdir()
    other = tmp_path / "other.py"
    (tmp_path / "studies" / "one.py").write_text("import other\n")
    other.write_text("A = 1\n")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    commit = git("rev-parse", "--short", "HEAD").strip()
    page = set_block("", "known", f"Measured by `python -m studies.one` at commit {commit}.")
    (tmp_path / "page.md").write_text(set_block(page, "gap", "| a |"))
    monkeypatch.setattr(common, "ROOT", tmp_path)
    other.write_text('"""Text."""\nA = 1  # A comment.\n')
    assert list(outdated(tmp_path)) == ["page.md, gap: no commit"]
    other.write_text("A = 2\n")
    changed = f"page.md, known: 1 files have changed since {commit}: other.py"
    assert list(outdated(tmp_path)) == [changed, "page.md, gap: no commit"]


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


def test_results_of_files_depend_on_their_content(tmp_path, monkeypatch):
    """Measured once for a file of the same name and size, unless its content differs."""
    path, measured = tmp_path / "net.safetensors", []
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(common, "load", lambda file, snapshot: file.read_text())
    monkeypatch.setattr(common, "key", lambda value, module: str(value))

    def function(model, seed):
        measured.append(model)
        return {"value": (1.0, 0.1)}

    for content in ("a", "a", "b"):
        path.write_text(content)
        found = Study(tmp_path, [0, 1]).measure(function, "net")
        assert found["value"] == [Estimate(1.0, 0.1)]
    assert measured == ["a", "b"]


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
    assert factor == (3.5 if name.endswith("longer") else 1 if network.snapshots == 2 else 0.5)


def test_checks_and_their_summary():
    """Verdicts of six seeds and of one, not measured, and margins on what exceeds a floor."""

    def seeds(*values, stderr=0.01, floor=0.0):
        return [Estimate(value, stderr, floor) for value in values]

    one, three = seeds(1.0, 1.01), seeds(3.0, 3.06)
    near = seeds(0.9, 0.9095, floor=0.8), seeds(1.0, 1.01, floor=0.8)
    shown = "1.0050(50), 3.030(30)"
    cases = [
        (smaller("a", "ratio", "p", one, three, 2.0), (shown, "3.015(15)", HOLDS)),
        (larger("a", "inverse", "p", one, three), (shown, "0.3317(16)", FAILS)),
        (Check("b", "amount", "p", seeds(1, -0.2), margin=0.0), ("", "0.40(60)", UNKNOWN)),
        (Check("b", "one seed", "p", seeds(1), margin=0.0), ("", "1.000(10)", f"({HOLDS})")),
        (Check("b", "a gap", "p", []), ("", "", "not measured")),
        (smaller("c", "weak", "p", one, three, is_weak=True), (shown, "3.015(15)", f"({HOLDS})")),
        # About sqrt((0.9^2 - 0.8^2) / (1 - 0.8^2)) = 0.69 is below 0.8, as 0.9 alone is not.
        (smaller("d", "excess", "p", near[1], near[0], 0.8), (None, "0.69469(88)", FAILS)),
    ]
    page = set_block("", "claim 1", "\n".join(table(check for check, _ in cases)))
    rows = read_table(page, "claim")
    assert [row["claim"] for row in rows] == ["a", "", "b", "", "", "c", "d"]
    for row, (here, number, verdict) in zip(rows, (expected for _, expected in cases)):
        assert here is None or row["here [paper]"] == f"{here} [p]".strip()
        assert (row["number"], row["verdict, p"].split(", ")[0]) == (number, verdict)
    expected = "| 1 | 2 | 1 | 2 | 0 | 0 | 1 | 3 |"
    assert summary(page, ["Title"])[2:] == [f"| 1. Title {expected}", f"| all {expected}"]


class FakeStudy(Study):
    """Measures nothing: every number is 1."""

    used: set[str] = set()

    def measure(self, function, *names, snapshot=None, shift=0, **arguments):
        assert all(name in NETWORKS or (ROOT / f"{name}.safetensors").exists() for name in names)
        self.used.update(names)
        assert callable(getattr(claims_measured, function.__name__))
        return defaultdict(lambda: [Estimate(1.0, 0.1)])


def test_the_claims_and_the_page_have_the_same_rows(tmp_path):
    """With the same figures of the paper, in the same order; all networks are used."""
    page = (ROOT / "docs" / "claims.md").read_text()
    study = FakeStudy(tmp_path, [0, 1])

    def known(rows):
        papers = (row["here [paper]"].partition("[")[2] for row in rows)
        return [(row["claim"], row["of"], paper) for row, paper in zip(rows, papers)]

    for number, make in enumerate(claims.CLAIMS.values(), 1):
        written = read_table(block(page, f"claim {number}"), "claim")
        made = read_table("\n".join(table(make(study))), "claim")
        assert known(made) == known(written)
    assert NETWORKS.keys() <= study.used
    written = block(page, "summary").strip().splitlines()[2:-2]
    assert summary(page, list(claims.CLAIMS)) == written


def test_the_ratio_of_signal_to_noise_is_chosen_by_training_images(tmp_path):
    class Tuning(FakeStudy):
        def measure(self, function, *names, snapshot=None, shift=0, **arguments):
            distance = (arguments["snr"] - 0.1) ** 2
            is_tuning = function == claims_measured.tuning
            assert len(self.seeds) == (1 if is_tuning else 2)
            return {"distance": [Estimate(distance if is_tuning else 7 + distance, 0.1)]}

    study = Tuning(tmp_path, [0, 1])
    (found,) = study.tuned_distances("VE", "VE, flow", sampler="pc")
    assert found.value == pytest.approx(7)
    assert study.tuned == {"VE, flow": 0.1}


def test_sliced_distance_of_a_shift():
    """All quantiles along a direction u move by shift . u; their mean square has a closed form."""
    rng, shift = np.random.default_rng(0), np.linspace(0.1, 0.4, 4)
    x = rng.normal(size=(500, 4))
    quantiles = distances.weighted_quantiles(x, np.ones(500))
    expected = np.sqrt(np.mean((shift @ distances.directions(4)) ** 2))
    assert distances.sliced_distance(quantiles, x) == pytest.approx(0, abs=1e-12)
    assert distances.sliced_distance(quantiles, x + shift) == pytest.approx(expected)
    weighted = distances.weighted_quantiles(x, np.where(x[:, 0] > 0, 3.0, 1.0))
    copies = np.concatenate([x, x[x[:, 0] > 0], x[x[:, 0] > 0]])
    assert distances.sliced_distance(weighted, copies) < 0.02 < 0.2
    assert distances.sliced_distance(weighted, x) > 0.2


def test_quantiles_of_a_mixture():
    mixture, _ = modes(4)
    samples = mixture.draw(np.random.default_rng(0), 20_000)
    quantiles = distances.quantiles_of_mixture(mixture, 2000)
    assert distances.sliced_distance(quantiles, samples) < 0.02


@pytest.mark.slow
def test_digits_are_recognized_and_their_floor_is_small():
    """The classifier of clean digits, and the distance of training digits to held-out ones."""
    model = common.load("zoo/digits_vp.safetensors")
    train, test = (common.images(model, split) for split in ("train", "test"))
    images = model.to_images(model.from_images(test.pixels))
    assert (distances.classes(images) == np.asarray(test.labels)).mean() > 0.9
    x = np.asarray(model.from_images(np.asarray(train.batch(np.arange(1000)).pixels)))
    near, far = (distances.distance(model, each).value for each in (x, x / 2))
    assert near < 0.1 < far
    every = distances.scale(distances.digits(np.asarray(train.pixels)))
    of_training = distances.quantiles(model, "train")
    assert distances.sliced_distance(of_training, every) == pytest.approx(0, abs=1e-12)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Runs a study with tiny networks; returns the blocks that it writes, by name."""
    written: dict[str, list[str]] = {}

    def train(config, folder):
        changes = {"model.num_scales": 21, "training.sde": config.training.sde}
        workdir = tmp_path / f"{config.training.sde}{config.seed}"
        scale = 0.1 + 0.01 * config.seed
        return workdir if workdir.exists() else tiny.untrained(workdir, scale=scale, **changes)

    def run(name, options, **constants):
        module = importlib.import_module(f"studies.{name}")
        for key, value in constants.items():
            monkeypatch.setattr(module, key, value)
        chosen = module.OPTIONS | options | {"folder": str(tmp_path), "write": True}
        blocks = module.main(argparse.Namespace(**chosen)) or written
        return {name: "\n".join(lines) for name, lines in blocks.items()}

    monkeypatch.setattr(common, "train", train)
    monkeypatch.setattr(common, "write_blocks", lambda page, blocks: written.update(blocks))
    return run


@pytest.mark.long
def test_page_of_claims(page, capsys):
    """Twice: the second time all is known. The cache of compilation stays that of the tests."""
    config = types.SimpleNamespace(update=lambda *setting: None)
    constants = {"IMAGES": 8, "ALL_DATA": ("",), "jax": types.SimpleNamespace(config=config)}
    found = page("claims", {"claim": "6", "seeds": 2}, **constants)
    rows = read_table(found["claim 6"], "claim")
    assert len(rows) == 2
    capsys.readouterr()
    assert page("claims", {"claim": "6", "seeds": 2}) == found
    assert "measuring" not in capsys.readouterr().out


@pytest.mark.long
def test_page_of_samplers(page, monkeypatch):
    sde = {"VP": common.SDES["VP"]}
    constants = {"SDES": sde, "BUDGETS": (10, 20), "CANDIDATES": ("deis",)}
    found = page("sampling", {"samples": 100}, plot=lambda *_: None, **constants)
    assert "| `restart` | " in found["VP"]
    assert read_table(found["VP"], "sampler")[2]["sampler"] == "ode"
    assert "the config's own" in found["trained"]


@pytest.mark.long
def test_page_of_guidance(page, monkeypatch):
    """Guidance without a classifier evaluates the network twice; the floor has the classes."""
    monkeypatch.setattr(learned, "SETS", ("digits",))
    monkeypatch.setattr(learned, "SETTINGS", learned.SETTINGS | {"steps": 8})
    short = functools.partial(claims_measured.with_classifier, n_iters=2)
    constants = {"CLASSIFIED_SDES": ("VP",), "CLASSIFIED": (4.0,), "with_classifier": short}
    constants |= {"SEEDS": 2, "SCALES": ((2.0, None),)}
    rows = read_table(page("guidance", {}, **constants)["distances"], "guidance, scale")
    evaluations = {row["guidance, scale"]: row["NFE"] for row in rows}
    assert list(evaluations.values()) == ["0", "20", "20", "40", "40", "20"]
    assert evaluations["VP, classifier, 4"] == "20"
    correct = [float(row["correct class, %"].split(" ")[0]) for row in rows]
    assert correct[0] > 95 > max(correct[1:])


@pytest.mark.long
def test_page_of_likelihoods(page):
    constants: dict = {"TOLERANCES": (1e-2,), "PROBES": (1, 4), "T_MINS": (1e-3,)}
    constants |= {"NETWORKS": {"digits_vp": 2}, "LEVELS": (16,), "LEVELS_REFERENCE": 1e-2}
    found = page("likelihood", {"images": 2, "rounds": 1}, **constants)
    last = read_table(found["levels"], "Network")[-1]
    assert abs(float(last["mean error"])) < 0.05
    assert float(last["ratio"]) > 2
    rows = read_table(found["accuracy"], "Problem")
    assert [row["tolerance"] for row in rows] == ["official", "0.01"] * 4
    assert all(float(row["error"]) < 0.05 for row in rows[:6])  # The mixtures have exact scores.
    assert len(read_table(found["sensitivity"], "")) == 1 + 4 + 1


@pytest.mark.long
def test_page_of_likelihoods_by_peers(page):
    chosen = ("ours, 16 levels", "official, RK45 at 1e-5", "diffrax, rtol 1e-3, atol 1e-6")
    methods = {name: likelihood_peers.METHODS[name] for name in chosen}
    constants = {"METHODS": methods, "REFERENCE_TOLERANCE": 1e-3, "LEVELS_REFERENCE": 1e-2}
    found = page("likelihood_peers", {"images": 2}, **constants)
    rows = read_table(found["peers"], "Scores")
    assert [row["evaluations"] for row in rows[::3]] == ["16"] * 2
    assert all(float(row["error"]) < 0.08 for row in rows)
    ratios = [float(row["ratio"]) for row in read_table(found["traces"], "Estimate")]
    assert ratios[0] == 1 < ratios[1]


@pytest.mark.slow
def test_flow_matching_on_a_mixture():
    pytest.importorskip("flow_matching")
    problem = likelihood.mixture_problem(VPSDE(), 2)
    logp, _ = likelihood_peers.flow_matching(problem, "dopri5", None)
    np.testing.assert_allclose(logp, problem.logp, atol=0.02)


def test_estimates_of_a_trace():
    """They are unbiased; Hutch++ is exact for a low rank."""
    rng = np.random.default_rng(0)
    full = rng.normal(size=(3, 12, 12))
    for estimate, rank, count in (
        ("hutchinson", 12, 2000),
        ("hutch_pp", 12, 2000),
        ("hutch_pp", 2, 4),
    ):
        matrices = full[:, :, :rank] @ full[:, :rank]
        draws = rng.choice([-1, 1], (count, 3, 12, 4))
        found = [getattr(likelihood_peers, estimate)(matrices, draw) for draw in draws]
        error = np.mean(found) - np.trace(matrices, axis1=1, axis2=2).sum()
        assert abs(error) < 4 * np.std(found) / count**0.5 + 1e-9


@pytest.mark.long
def test_page_of_inverse_problems(page):
    constants = {
        "SDES": {"VP": VPSDE()},
        "METHODS": {"ddrm": inverse_problems.METHODS["ddrm"]},
        "STEPS": {"ddrm": 50},
        "CALIBRATED": (20, 20),
        "SAMPLES": 2,
    }
    found = page("inverse_problems", {"images": 2}, **constants)
    assert found.keys() == {"gaussian", "calibration", "digits"}
    (row,) = read_table(found["gaussian"], "method")
    assert max(map(float, row["VP: mask, noise 0.2"].split(" / "))) < 0.2
    assert len(read_table(found["digits"], "method")) == 2  # with training images


def test_quality_of_reconstructions():
    """Images in [-1, 1] that are off by 0.2 have a PSNR of 20 dB; the mean of both is exact."""
    truth = jnp.zeros((3, 8, 8, 1))
    psnr, of_mean, ssim = inverse_problems.quality(np.stack([truth + 0.2, truth - 0.2]), truth)
    assert psnr == pytest.approx(20, abs=0.1)
    assert of_mean > 60
    assert 0.9 < ssim < 1


@pytest.mark.slow
def test_floor_of_the_digits():
    """A thousand training digits are 0.066 away from the held-out ones, by another computation."""
    rows = read_table("\n".join(floors.floors(common.load("zoo/digits_vp.safetensors"))), "samples")
    assert [row["samples"] for row in rows] == ["1000", "5000"]
    first, second = (float(row["floor"].split()[0]) for row in rows)
    assert first == pytest.approx(0.0664, abs=0.005)
    assert second < first


def test_exact_scores_of_table_1():
    """They are the gradient of the log density of the noised mixture."""
    for name, sde in table1.SDES.items():
        scale = 0.5 if name == "VE" else 1.0
        x, t = jnp.linspace(-1, 1, 128).reshape(2, 64), jnp.array([0.02, 0.5])

        def logp(x, t, sde=sde, scale=scale):
            var = (sde.alpha(t) * scale * table1.WIDTH) ** 2 + sde.var(t)
            squares = jnp.square(x - sde.alpha(t) * scale * table1.images("digits")).sum(-1)
            return jax.nn.logsumexp(-0.5 * squares / var)

        expected = jax.vmap(jax.grad(logp))(x, t)
        np.testing.assert_allclose(
            table1.prior_of("digits", sde, scale).score(x, t), expected, rtol=1e-3, atol=1e-2
        )


def test_features_of_table_1():
    """Small data are their own features; those of large data are orthonormal coordinates."""
    np.testing.assert_array_equal(table1.features(np.eye(64)), np.eye(64))
    axes = table1.features(np.eye(100))
    np.testing.assert_allclose(axes.T @ axes, np.eye(64), atol=1e-12)


@pytest.mark.long
def test_page_of_table_1(page):
    """With few steps, the rows of one SDE: distances above the floor, ratios and published FID."""
    columns = {name: each | {"steps": 50} for name, each in table1.COLUMNS.items()}
    constants = {"COLUMNS": columns, "SDES": {"VE": table1.SDES["VE"]}}
    constants |= {"SNRS": (0.1, 0.16), "EXACT": 1000, "SEEDS": range(1, 3)}
    found = page("table1", {}, COUNTS={"digits": (500, 20)}, **constants)
    rows = read_table(found["table1"], "SDE")
    assert [row["predictor"] for row in rows] == list(table1.PREDICTORS)
    fid = {name: f"[{found[3]:.2f}]" for name, found in table1.FID["VE"].items()}
    assert all(row["PC1000"].endswith(fid[row["predictor"]]) for row in rows)
    assert all(", snr 0.1" in row["C2000"] for row in rows)
