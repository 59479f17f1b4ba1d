"""The benchmarks of speed, at tiny size: what they count and divide, against what is known otherwise."""

import importlib
import inspect
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import losses
import pretrained
from benchmarks import (
    accelerator,
    compile_time,
    contest,
    likelihood,
    memory,
    parts,
    peer,
    sampling,
    speed,
    train_step,
)
from errors import InputError
from experiment import Experiment

DIGITS = "configs/vp/digits_ddpmpp_continuous.py"
NCSNPP, DDPM = "configs/ve/church_ncsnpp_continuous.py", "configs/vp/ddpm/cifar10_continuous.py"
TINY = ("model.nf=8", "model.ch_mult=(1,)", "model.num_res_blocks=1", "model.attn_resolutions=()")
SAME = ("model.ch_mult=(1,2)", "model.num_res_blocks=1", "data.image_size=8", "model.dropout=0.0")
OF_DIFFUSERS = {  # Networks that diffusers has.
    "NCSN++": (NCSNPP, (*SAME, "model.nf=8", "model.attn_resolutions=()")),
    "DDPM": (
        DDPM,
        (
            *SAME,
            "model.nf=32",
            "model.attn_resolutions=(4,)",
            "model.attend_after_each_up_block=True",
        ),
    ),
}
QUICK = {"config": [DIGITS], "set": TINY, "batch_size": 4, "rounds": 1, "size": 16}


# --- what is counted --------------------------------------------------------------------------------------------------


def test_flops_and_memory_of_a_product():
    a, b = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((32, 16), "float32")
    compiled = speed.compile_stages(jax.jit(jnp.matmul), a, b)
    assert compiled.flops == 2 * 64 * 32 * 16
    assert compiled.memory["arguments"] == 4 * (64 * 32 + 32 * 16)
    assert compiled.memory["results"] == 4 * 64 * 16
    assert compiled.peak >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert set(compiled.seconds) == {"trace", "lower", "compile"}


def test_flops_of_a_train_step():
    """Thrice those forward; what remat and accumulation change is not counted."""
    config = contest.load(DIGITS, [*TINY, "training.batch_size=4"])
    experiment = Experiment(config, jax.devices()[:1])
    plain = _flops_of_step(experiment)
    assert plain == pytest.approx(3 * sampling.forward_flops(experiment, 4), rel=0.1)
    assert train_step.model_flops(config, 5.0) == 5.0
    config.unlock()
    config.training.update(remat=True, accumulate=2)
    assert train_step.model_flops(config, 5.0) == plain


def _flops_of_step(experiment):
    step, *shapes = train_step.lowered_arguments(experiment)
    return speed.flops(step.lower(*shapes))


def test_turns_and_ratios_on_a_clock_of_our_own():
    now, order = itertools.count(), []

    def takes(name, ticks):
        def run():
            order.append(name)
            for _ in range(ticks):
                next(now)

        return run

    contestants = {"slow": takes("slow", 8), "quick": takes("quick", 2)}
    seconds = speed.alternate(contestants, 3, clock=lambda: next(now))
    assert order == ["slow", "quick"] * 4
    assert seconds == {"slow": [9] * 3, "quick": [3] * 3}
    assert speed.faster(seconds, "quick", "slow") == 3
    assert (
        speed.faster({"a": [1, 2, 4], "b": [3, 4, 4]}, "a", "b") == 2
    )  # The median of 3, 2 and 1.


def test_rows_of_a_contest(monkeypatch):
    """Seconds 2 and 1 of 10 images each, against products of 3 s."""

    class Contestant:
        rate, facts = "float32", {"parameters": 7}

        def __init__(self, flops, **rivals):
            self.work, self.flops, self.rivals = 10, flops, rivals

    made = {"theirs": Contestant(4e12), "ours": Contestant(5e12, ratio="theirs")}
    seconds = {"theirs": [2, 2], "ours": [1, 1], "matrix products, float32": [3, 3]}
    monkeypatch.setattr(speed, "alternate", lambda contestants, rounds: seconds)
    theirs, ours, product = speed.compete(made, 2, ["float32", "float32"], size=10)
    flops = speed.Product("float32", 10).flops
    assert (ours["rate"], ours["tflops"], ours["ratio"], ours["parameters"]) == (10, 5, 2, 7)
    assert ours["share"] == pytest.approx(5e12 / (flops / 3))
    assert "ratio" not in theirs
    assert product["tflops"] == pytest.approx(flops / 3 / 1e12)
    lines = speed.table([theirs, ours], contest.columns({}))
    assert lines[0].count("|") == lines[-1].count("|")
    assert "compile" not in lines[0]  # Nothing is known of it.


# --- ours -------------------------------------------------------------------------------------------------------------


def test_train_step():
    ours, product = train_step.measure(**QUICK, steps=3)
    assert ours["rate"] * ours["seconds"] == pytest.approx(3 * 4)
    assert (
        ours["memory"] > 16 * ours["parameters"]
    )  # Parameters, their average and two moments, in float32.
    assert product["name"] == "matrix products, float32, 16"


def test_compilation_alone_runs_nothing(monkeypatch):
    monkeypatch.setattr(train_step.TrainStep, "__call__", None)
    (row,) = train_step.measure(**QUICK | {"rounds": 0})
    assert row["to_compile"] > 0


def test_sampling():
    pc, solver, _ = sampling.measure(**QUICK, levels=25)
    assert pc["nfe"] == 25  # Without corrector.
    assert pc["images"] * pc["seconds"] == pytest.approx(4)
    assert pc["rate"] * pc["seconds"] == pytest.approx(4 * 25)
    assert solver["nfe"] == contest.load(DIGITS).sampling.num_steps


def test_likelihood():
    ours, _ = likelihood.measure(**QUICK, tolerance=0.3)
    experiment = Experiment(contest.load(DIGITS, TINY), jax.devices()[:1])
    forward, both = (
        f(experiment, 4) for f in (sampling.forward_flops, likelihood.divergence_flops)
    )
    assert both == pytest.approx(2 * forward, rel=0.15)
    assert likelihood.BOUND == 32
    stages = ours["nfe"] - 32 * forward / both - 1  # Three a step, and one at the start.
    assert stages / 3 == pytest.approx(max(1, round(stages / 3)))
    assert ours["images"] * ours["seconds"] == pytest.approx(4)


# --- the peer ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    """PyTorch on one thread: several wait for each other where other tests run."""
    reason = "diffusers and PyTorch are not installed (requirements-dev.txt)"
    torch, _ = (pytest.importorskip(name, reason=reason) for name in ("torch", "diffusers"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", OF_DIFFUSERS)
def test_the_peer_has_our_network_and_our_loss(torch, tmp_path, kind):
    """As many parameters; with the same parameters the same loss; about as many FLOPs."""
    path, overrides = OF_DIFFUSERS[kind]
    config = contest.load(path, overrides)
    experiment, theirs = Experiment(config, jax.devices()[:1]), peer.Peer(config)
    assert theirs.parameters == speed.parameters(experiment)
    assert "same network" in peer.title(config, False)

    theirs.network.save_pretrained(tmp_path)
    params = pretrained.read(tmp_path, experiment.network, experiment.config).ema
    pixels, noise, level = theirs.images(2), theirs.normal(2), torch.tensor([300, 800])
    loss = theirs.loss(pixels, level, noise, torch.zeros((2, 1, 1, 1), dtype=bool)).item()
    t = jnp.linspace(experiment.sde.t_min, experiment.sde.T, peer.LEVELS)[level.numpy()]
    x, z = (jnp.moveaxis(jnp.asarray(each.numpy()), 1, -1) for each in (pixels, noise))

    @jax.jit
    def ours(params, x):
        x, score = experiment.prepare(jax.random.key(0), x, flip=False), experiment.score(params)
        return losses.denoising_score_matching(
            score, experiment.sde, x, t, z, **experiment.loss_options
        ).mean()

    np.testing.assert_allclose(loss, ours(params, x), rtol=1e-3)


@pytest.mark.parametrize("kind", OF_DIFFUSERS)
def test_train_step_of_the_peer(torch, kind):
    """About as many FLOPs as ours, though products alone are counted; and parameters move, the average less so."""
    path, overrides = OF_DIFFUSERS[kind]
    config = contest.load(path, [*overrides, "training.batch_size=2"])
    work = peer.Training(peer.Peer(config), 2)
    assert work.flops == pytest.approx(
        _flops_of_step(Experiment(config, jax.devices()[:1])), rel=0.35
    )
    before = [each.detach().clone() for each in work.weights]
    assert np.isfinite([work.step().item() for _ in range(3)]).all()
    moved, lagging = (
        max((a - b).abs().max().item() for a, b in zip(before, after))
        for after in (work.weights, work.ema)
    )
    assert moved > lagging > 0


def test_divergence_of_the_peer(torch, monkeypatch):
    """Of 3 x it is 3 for each of the 192 entries."""
    path, overrides = OF_DIFFUSERS["NCSN++"]
    work = peer.Likelihood(peer.Peer(contest.load(path, overrides)), 2, 4)
    monkeypatch.setattr(work, "output", lambda x, level: 3 * x)
    x, traces = work()
    np.testing.assert_allclose(traces, [4 * 3 * 192] * 2, rtol=1e-5)
    np.testing.assert_allclose(x, 1.003**4 * work.x, rtol=1e-5)


def test_networks_that_diffusers_lacks_have_a_nearest():
    near = peer.nearest(contest.load(contest.FLAGSHIP))
    assert (near.model.nf, near.model.num_res_blocks, near.model.progressive) == (
        128,
        4,
        "output_skip",
    )
    assert "nearest network" in peer.title(contest.load(contest.FLAGSHIP), False)
    assert (
        peer.nearest(contest.load("configs/vp/cifar10_ddpmpp_continuous.py")).model.name == "ddpm"
    )
    with pytest.raises(InputError, match="model.name"):
        peer.nearest(contest.load("configs/ve/ncsnv2/cifar10.py"))


def test_ours_beside_the_peer(torch):
    path, overrides = OF_DIFFUSERS["DDPM"]
    theirs, *ours, _ = sampling.measure(
        **QUICK | {"config": [path], "set": overrides}, levels=25, peer=True
    )
    assert theirs["name"] == "diffusers, same network, float32, of vp/ddpm/cifar10_continuous"
    for each in ours:
        assert each["ratio"] == pytest.approx(each["rate"] / theirs["rate"])


def test_without_pytorch_the_peer_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install torch diffusers"):
        peer.Peer(contest.load(*OF_DIFFUSERS["NCSN++"]))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "overrides", "sentence"),
    [
        ("configs/no.py", (), "--config=configs/no.py is no config file"),
        ("errors.py", (), "--config=errors.py is no config file"),
        (DIGITS, ("model.nff=3",), "--set=model.nff=3 does not fit"),
        (DIGITS, ("model.nf=many",), "--set=model.nf=many does not fit"),
    ],
)
def test_bad_configs(path, overrides, sentence):
    with pytest.raises(InputError, match=sentence):
        contest.load(path, overrides)


# --- parts, memory, starts, and the plan for accelerators -------------------------------------------------------------


def test_parts():
    assert parts.run("json:dumps", {"obj": [1]}, seconds=30) == "[1]"
    assert (
        parts.run("os:getenv", {"key": "SOMETHING"}, environment={"SOMETHING": "x"}, seconds=30)
        == "x"
    )
    assert parts.run("os:_exit", {"status": 3}, seconds=30) == {
        "error": "exit code 3: nothing said"
    }
    assert parts.run("json:loads", {"s": "{"}, seconds=30)["error"].startswith(
        "exit code 1: json.decoder.JSONDecode"
    )
    slow = parts.run("subprocess:run", {"args": ["sleep", "30"]}, seconds=0.5)
    assert slow == {"error": "not done after 0 s"}


def test_records_go_on(tmp_path):
    path = tmp_path / "folder" / "results.jsonl"
    records = parts.Records(path)
    records.add("a", {"x": 1})
    records.add("b", {"error": "no memory"})
    path.write_text(path.read_text() + '{"key": "c", "x"')  # As a run leaves it that is killed.
    records = parts.Records(path)
    assert [records.lacks(key) for key in "abc"] == [False, True, True]
    records.add("b", {"x": 2})
    records = parts.Records(path)
    assert {key: each["x"] for key, each in records.found.items()} == {"a": 1, "b": 2}


def test_memory(tmp_path, monkeypatch):
    """That of a real step on two devices; then what the file holds is not measured again, unless it failed."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    records = parts.Records(tmp_path / "memory.jsonl")
    (found,) = memory.measure(records, [DIGITS], TINY, shapes=[(8, 2)], seconds=100)
    experiment = Experiment(contest.load(DIGITS, TINY), jax.devices()[:1])
    assert found["parameters"] == speed.parameters(experiment)
    assert found["arguments"] == pytest.approx(
        16 * found["parameters"] + 4 * 64, rel=0.01
    )  # Of images it has half.
    run = []
    monkeypatch.setattr(
        parts, "run", lambda _, arguments, **options: run.append(arguments) or {"error": "killed"}
    )
    for _ in range(2):
        memory.measure(parts.Records(records.path), [DIGITS], TINY, shapes=[(8, 2), (None, 8)])
    assert [each["batch_size"] for each in run] == [None, None]
    monkeypatch.setattr(parts, "run", lambda *_, **options: {"peak": 5})
    again = memory.measure(parts.Records(records.path), [DIGITS], TINY, shapes=[(8, 2), (None, 8)])
    assert [each["peak"] for each in again] == [found["peak"], 5]
    configs = [DIGITS, DIGITS.replace("/vp/", "/subvp/"), "configs/ve/digits_ncsnpp_continuous.py"]
    monkeypatch.setattr(
        parts, "run", lambda _, arguments, **options: {"peak": len(arguments["config"])}
    )
    path = tmp_path / "alike.jsonl"
    rows = memory.measure(parts.Records(path), configs, shapes=[(1, 1)])
    assert rows == memory.measure(parts.Records(path), configs, shapes=[(1, 1)])
    assert len(path.read_text().splitlines()) == 3
    assert [each.get("same") for each in rows] == [None, "vp/digits_ddpmpp_continuous", None]
    assert [each["peak"] for each in rows] == [len(DIGITS), len(DIGITS), len(configs[2])]
    assert len(memory.all_configs()) > 40


def test_starts(monkeypatch):
    """The cold start and the warm one share a folder, each pair one of its own."""
    folders = []

    def run(function, arguments, *, environment, seconds):
        folders.append(environment["JAX_COMPILATION_CACHE_DIR"])
        return {"total": 10.0 if folders.count(folders[-1]) == 1 else 2.0}

    monkeypatch.setattr(parts, "run", run)
    cold, warm = compile_time.measure(config=[DIGITS], batch_size=4, starts=2)
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert (cold["total"], warm["total"], warm["share"]) == (10.0, 2.0, 0.2)


@pytest.mark.parametrize("tiny", [False, True])
def test_parts_of_the_plan_can_be_called(tiny):
    found = accelerator.plan(tiny)
    assert len({each.name for each in found}) == len(found)
    for each in found:
        module, _, name = each.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        inspect.signature(function).bind(**each.arguments)
        others = each.arguments.keys() - inspect.signature(function).parameters.keys()
        assert others <= inspect.signature(contest.contest).parameters.keys()


def test_timetable(tmp_path):
    """Each part takes 100 s of 540, or 30 to compile; one fails; what there is no time for is left to another call."""
    now, calls = [0.0], []

    def run(function, arguments, *, environment, seconds):
        compiling = arguments.get("rounds") == 0
        calls.append(
            (compiling, arguments["batch_size"], "JAX_COMPILATION_CACHE_DIR" in environment)
        )
        now[0] += min(seconds, 30 if compiling else 100)
        return (
            {"error": "no memory"} if arguments["batch_size"] == 2 else [{"name": "x", "rate": 5.0}]
        )

    part = lambda n, alone=False: accelerator.Part(
        str(n), "train_step", {"batch_size": n, "rounds": 3}, alone
    )
    found, records = (
        [part(1, True), part(2), part(3), part(4), part(5)],
        parts.Records(tmp_path / "results.jsonl"),
    )
    timetable = accelerator.Timetable(records, tmp_path, 540, clock=lambda: now[0], run=run)
    accelerator.go(found, timetable, 1)
    assert calls[0] == (False, 1, False)
    assert calls[1:5] == [(True, n, True) for n in (2, 3, 4, 5)]
    assert calls[5:] == [(False, n, True) for n in (2, 3, 4, 5)][: len(calls) - 5]
    assert now[0] <= 540
    assert [records.lacks(str(n)) for n in (1, 2, 3)] == [False, True, False]
    text = accelerator.page(records, "a machine")
    assert "- 2: no memory" in text
    assert "| x | 3 | 5 |" in text


@pytest.mark.slow
def test_everything_at_tiny_size(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", f"--out={tmp_path}"]
    subprocess.run(command, check=True, timeout=300)
    found = parts.Records(tmp_path / "results.jsonl").found
    assert {each["module"] for each in found.values()} == accelerator.TABLES.keys()
    assert all(each["rows"] for each in found.values())
    assert "Not measured" not in (tmp_path / "results.md").read_text()
