"""The speed benchmarks at tiny size: counts, ratios and tables against known values."""

import importlib
import inspect
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pretrained
from benchmarks import (
    accelerator,
    comparison,
    compile_time,
    forward,
    likelihood,
    memory,
    parts,
    peer,
    peer_runs,
    roofline,
    sampling,
    speed,
    traffic,
    train_step,
)
from errors import InputError
from experiment import Experiment

DIGITS = "configs/vp/digits_ddpmpp_continuous.py"
NCSNPP, DDPM = "configs/ve/church_ncsnpp_continuous.py", "configs/vp/ddpm/cifar10_continuous.py"
TINY = ("model.nf=8", "model.ch_mult=(1,)", "model.num_res_blocks=1", "model.attn_resolutions=()")
SAME = ("model.ch_mult=(1,2)", "model.num_res_blocks=1", "data.image_size=8", "model.dropout=0.0")
IN_DIFFUSERS = {  # networks that diffusers has: (config, overrides)
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
QUICK = {"config": [DIGITS], "overrides": TINY, "batch_size": 4, "rounds": 1, "size": 16}


def experiment_of(path, overrides):
    return Experiment(comparison.load_config(path, overrides), jax.devices()[:1])


def step_flops(experiment):
    step, *shapes = train_step.lowered_arguments(experiment)
    return speed.flops(step.lower(*shapes))


# --- counting and timing ---


def test_flops_and_memory_of_a_product():
    a, b = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((32, 16), "float32")
    compiled = speed.compile_stages(jax.jit(jnp.matmul), a, b)
    assert compiled.flops == 2 * 64 * 32 * 16
    assert compiled.memory["arguments"] == 4 * (64 * 32 + 32 * 16)
    assert compiled.memory["results"] == 4 * 64 * 16
    assert compiled.peak >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert set(compiled.seconds) == {"trace", "lower", "compile"}


def test_flops_of_a_train_step():
    """They are three times those of a forward pass; remat and accumulation do not change them."""
    config = comparison.load_config(DIGITS, [*TINY, "training.batch_size=4"])
    experiment = Experiment(config, jax.devices()[:1])
    plain = step_flops(experiment)
    assert plain == pytest.approx(3 * sampling.forward_flops(experiment, 4), rel=0.1)
    assert train_step.model_flops(config, 5.0) == 5.0
    config.unlock()
    config.training.update(remat=True, accumulate=2)
    assert train_step.model_flops(config, 5.0) == plain


def test_timing_in_turn_with_a_simulated_clock():
    now, order = itertools.count(), []

    def function(name, ticks):
        def run():
            order.append(name)
            for _ in range(ticks):
                next(now)

        return run

    functions = {"slow": function("slow", 8), "quick": function("quick", 2)}
    seconds = speed.time_in_turn(functions, 3, clock=lambda: next(now))
    assert order == ["slow", "quick"] * 4
    assert seconds == {"slow": [9] * 3, "quick": [3] * 3}
    assert speed.speed_ratio(seconds, "quick", "slow") == 3
    ratios_3_2_1 = {"a": [1, 2, 4], "b": [3, 4, 4]}
    assert speed.speed_ratio(ratios_3_2_1, "a", "b") == 2


def test_rows_of_competitors(monkeypatch):
    """Two competitors take 2 s and 1 s for 10 images; matrix products take 3 s."""

    class Competitor:
        product, facts, work = "float32", {"parameters": 7}, 10

        def __init__(self, flops, **rivals):
            self.flops, self.rivals = flops, rivals

    competitors = {"peer": Competitor(4e12), "own": Competitor(5e12, ratio="peer")}
    seconds = {"peer": [2, 2], "own": [1, 1], "matrix products, float32": [3, 3]}
    monkeypatch.setattr(speed, "time_in_turn", lambda functions, rounds: seconds)
    peer_row, own, product = speed.time_competitors(competitors, 2, ["float32", "float32"], size=10)
    flops = speed.Product("float32", 10).flops
    assert (own["rate"], own["tflops"], own["ratio"], own["parameters"]) == (10, 5, 2, 7)
    assert own["share"] == pytest.approx(5e12 / (flops / 3))
    assert "ratio" not in peer_row
    assert product["tflops"] == pytest.approx(flops / 3 / 1e12)
    lines = speed.table([peer_row, own], comparison.columns({}))
    assert lines[0].count("|") == lines[-1].count("|")
    assert "compile" not in lines[0]  # Columns without values are omitted.


# --- our networks ---


def test_train_step():
    own, product = train_step.measure(**QUICK, steps=3)
    assert own["rate"] * own["seconds"] == pytest.approx(3 * 4)
    state = 4 * 4 * own["parameters"]  # parameters, their average and two moments, in float32
    assert own["memory"] > state
    assert product["name"] == "matrix products, float32, 16"


def test_compilation_alone_runs_nothing(monkeypatch):
    monkeypatch.setattr(train_step.TrainStep, "__call__", None)
    (row,) = train_step.measure(**QUICK | {"rounds": 0})
    assert row["to_compile"] > 0


def test_forward():
    own, product = forward.measure(**QUICK)
    assert own["rate"] * own["seconds"] == pytest.approx(4)
    assert own["tflops"] * own["seconds"] * 1e12 == pytest.approx(
        sampling.forward_flops(experiment_of(DIGITS, TINY), 4)
    )
    assert own["memory"] > 4 * own["parameters"]  # in float32
    assert product["name"] == "matrix products, float32, 16"


def test_sampling():
    pc, solver, _ = sampling.measure(**QUICK, levels=25)
    assert pc["nfe"] == 25  # The config has no corrector.
    assert pc["images"] * pc["seconds"] == pytest.approx(4)
    assert pc["rate"] * pc["seconds"] == pytest.approx(4 * 25)
    assert solver["nfe"] == comparison.load_config(DIGITS).sampling.num_steps


@pytest.mark.slow
def test_likelihood():
    own, _ = likelihood.measure(**QUICK, tolerance=0.3)
    experiment = experiment_of(DIGITS, TINY)
    forward = sampling.forward_flops(experiment, 4)
    with_derivative = likelihood.divergence_flops(experiment, 4)
    assert with_derivative == pytest.approx(2 * forward, rel=0.15)
    assert likelihood.BOUND == 32
    # The adaptive solver makes one evaluation at the start and three in each step.
    stages = own["nfe"] - 32 * forward / with_derivative - 1
    assert stages / 3 == pytest.approx(max(1, round(stages / 3)))
    assert own["images"] * own["seconds"] == pytest.approx(4)


# --- the peer ---


@pytest.fixture
def torch():
    """PyTorch on one thread: several would wait for each other where other tests run."""
    reason = "diffusers and PyTorch are not installed (requirements-dev.txt)"
    torch, _ = (pytest.importorskip(name, reason=reason) for name in ("torch", "diffusers"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", IN_DIFFUSERS)
def test_the_peer_has_our_network_and_our_loss(torch, tmp_path, kind):
    """The number of parameters is equal, and so is the loss for equal parameters."""
    path, overrides = IN_DIFFUSERS[kind]
    config = comparison.load_config(path, overrides)
    experiment, pytorch = Experiment(config, jax.devices()[:1]), peer.Peer(config)
    assert pytorch.parameters == speed.parameters(experiment)
    assert "same network" in peer.title(config, False)

    pytorch.network.save_pretrained(tmp_path)
    params = pretrained.read(tmp_path, experiment.network, experiment.config).ema
    pixels, noise, level = pytorch.images(2), pytorch.normal(2), torch.tensor([300, 800])
    flip = torch.zeros((2, 1, 1, 1), dtype=bool)
    peer_loss = pytorch.loss(pixels, level, noise, flip).item()
    t = jnp.linspace(experiment.sde.t_min, experiment.sde.T, peer.LEVELS)[level.numpy()]
    x, z = (jnp.moveaxis(jnp.asarray(each.numpy()), 1, -1) for each in (pixels, noise))

    @jax.jit
    def own_loss(params, x):
        x, score = experiment.prepare(jax.random.key(0), x, flip=False), experiment.score(params)
        return experiment.loss(score, x, t, z).mean()

    np.testing.assert_allclose(peer_loss, own_loss(params, x), rtol=1e-3)


@pytest.mark.parametrize("kind", IN_DIFFUSERS)
def test_train_step_of_the_peer(torch, kind):
    """FLOPs are close to our count, without additions; the average lags behind the parameters."""
    path, overrides = IN_DIFFUSERS[kind]
    config = comparison.load_config(path, [*overrides, "training.batch_size=2"])
    training = peer_runs.Training(peer.Peer(config), 2)
    own_flops = step_flops(Experiment(config, jax.devices()[:1]))
    assert training.flops == pytest.approx(own_flops, rel=0.35)
    before = [each.detach().clone() for each in training.weights]
    assert np.isfinite([training.step().item() for _ in range(3)]).all()

    def largest_change(after):
        return max((a - b).abs().max().item() for a, b in zip(before, after))

    assert largest_change(training.weights) > largest_change(training.ema) > 0


def test_divergence_of_the_peer(torch, monkeypatch):
    """The divergence of 3 x is 3 for each of the 192 entries."""
    config = comparison.load_config(*IN_DIFFUSERS["NCSN++"])
    run = peer_runs.Likelihood(peer.Peer(config), 2, 4)
    monkeypatch.setattr(run, "output", lambda x, level: 3 * x)
    x, traces = run()
    np.testing.assert_allclose(traces, [4 * 3 * 192] * 2, rtol=1e-5)
    np.testing.assert_allclose(x, 1.003**4 * run.x, rtol=1e-5)


def test_nearest_network_of_diffusers():
    flagship = comparison.load_config(comparison.FLAGSHIP)
    near = peer.nearest(flagship).model
    assert (near.nf, near.num_res_blocks, near.progressive) == (128, 4, "output_skip")
    assert "nearest network" in peer.title(flagship, False)
    ddpmpp = comparison.load_config("configs/vp/cifar10_ddpmpp_continuous.py")
    assert peer.nearest(ddpmpp).model.name == "ddpm"
    with pytest.raises(InputError, match="model.name"):
        peer.nearest(comparison.load_config("configs/ve/ncsnv2/cifar10.py"))


@pytest.mark.slow
def test_comparison_with_the_peer(torch):
    path, overrides = IN_DIFFUSERS["DDPM"]
    options = QUICK | {"config": [path], "overrides": overrides}
    peer_row, *own, _ = sampling.measure(**options, levels=25, peer=True)
    assert peer_row["name"] == "diffusers, same network, float32, of vp/ddpm/cifar10_continuous"
    for row in own:
        assert row["ratio"] == pytest.approx(row["rate"] / peer_row["rate"])


def test_error_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install torch diffusers"):
        peer.Peer(comparison.load_config(*IN_DIFFUSERS["NCSN++"]))


# --- invalid input ---


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        ("configs/no.py", (), "--config=configs/no.py is no config file"),
        ("errors.py", (), "--config=errors.py is no config file"),
        (DIGITS, ("model.nff=3",), "--set=model.nff=3 does not fit"),
        (DIGITS, ("model.nf=many",), "--set=model.nf=many does not fit"),
    ],
)
def test_invalid_configs(path, overrides, message):
    with pytest.raises(InputError, match=message):
        comparison.load_config(path, overrides)


# --- separate processes, and the benchmarks that use them ---


def test_running_in_a_new_process():
    assert parts.run("json:dumps", {"obj": [1]}, seconds=30) == "[1]"
    variable = {"SOMETHING": "x"}
    assert parts.run("os:getenv", {"key": "SOMETHING"}, environment=variable, seconds=30) == "x"
    silent = parts.run("os:_exit", {"status": 3}, seconds=30)
    assert silent == {"error": "exit code 3: no output"}
    failed = parts.run("json:loads", {"s": "{"}, seconds=30)
    assert failed["error"].startswith("exit code 1: json.decoder.JSONDecode")
    slow = parts.run("subprocess:run", {"args": ["sleep", "30"]}, seconds=0.5)
    assert slow == {"error": "not done after 0 s"}


def test_records_resume(tmp_path):
    path = tmp_path / "folder" / "results.jsonl"
    records = parts.Records(path)
    records.add("a", {"x": 1})
    records.add("b", {"error": "no memory"})
    path.write_text(path.read_text() + '{"key": "c", "x"')  # A killed run leaves such a line.
    records = parts.Records(path)
    assert [records.is_missing(key) for key in "abc"] == [False, True, True]
    records.add("b", {"x": 2})
    records = parts.Records(path)
    assert {key: each["x"] for key, each in records.results.items()} == {"a": 1, "b": 2}


@pytest.mark.slow
def test_memory_of_a_step(tmp_path, monkeypatch):
    """On two devices; a later run repeats only the measurements that failed."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    records = parts.Records(tmp_path / "memory.jsonl")
    (found,) = memory.measure(records, [DIGITS], TINY, shapes=[(8, 2)], seconds=100)
    assert found["parameters"] == speed.parameters(experiment_of(DIGITS, TINY))
    half_of_images = 4 * 64
    assert found["arguments"] == pytest.approx(16 * found["parameters"] + half_of_images, rel=0.01)
    calls = []

    def fail(function, arguments, **options):
        calls.append(arguments)
        return {"error": "killed"}

    shapes = [(8, 2), (None, 8)]
    monkeypatch.setattr(parts, "run", fail)
    for _ in range(2):
        memory.measure(parts.Records(records.path), [DIGITS], TINY, shapes=shapes)
    assert [each["batch_size"] for each in calls] == [None, None]
    monkeypatch.setattr(parts, "run", lambda *_, **options: {"peak": 5})
    again = memory.measure(parts.Records(records.path), [DIGITS], TINY, shapes=shapes)
    assert [each["peak"] for each in again] == [found["peak"], 5]


def test_memory_of_equal_steps(tmp_path, monkeypatch):
    """Configs that differ only in the SDE are compiled once."""

    def run(function, arguments, **options):
        return {"peak": len(arguments["config"])}

    monkeypatch.setattr(parts, "run", run)
    configs = [DIGITS, DIGITS.replace("/vp/", "/subvp/"), "configs/ve/digits_ncsnpp_continuous.py"]
    path = tmp_path / "alike.jsonl"
    rows = memory.measure(parts.Records(path), configs, shapes=[(1, 1)])
    assert rows == memory.measure(parts.Records(path), configs, shapes=[(1, 1)])
    assert len(path.read_text().splitlines()) == 3
    assert [each.get("same") for each in rows] == [None, "vp/digits_ddpmpp_continuous", None]
    assert [each["peak"] for each in rows] == [len(DIGITS), len(DIGITS), len(configs[2])]
    assert len(memory.all_configs()) > 40


def test_starts(monkeypatch):
    """A warm start uses the cache folder of its cold start; each pair has a new folder."""
    folders = []

    def run(function, arguments, *, environment, seconds):
        folders.append(environment["JAX_COMPILATION_CACHE_DIR"])
        return {"total": 10.0 if folders.count(folders[-1]) == 1 else 2.0}

    monkeypatch.setattr(parts, "run", run)
    cold, warm = compile_time.measure(config=[DIGITS], batch_size=4, starts=2)
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert (cold["total"], warm["total"], warm["share"]) == (10.0, 2.0, 0.2)


@pytest.mark.parametrize("tiny", [False, True])
def test_planned_measurements_can_be_called(tiny):
    planned = accelerator.plan(tiny)
    assert len({part.name for part in planned}) == len(planned)
    for part in planned:
        module, _, name = part.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        signature = inspect.signature(function)
        signature.bind(**part.arguments)
        others = part.arguments.keys() - signature.parameters.keys()
        assert others <= inspect.signature(comparison.compare).parameters.keys()


def test_timetable(tmp_path):
    """Measurements take 100 of 540 s, and 30 s to compile; one fails; some are left for later."""
    now, calls = [0.0], []

    def run(function, arguments, *, environment, seconds):
        compiling, batch = arguments.get("rounds") == 0, arguments["batch_size"]
        calls.append((compiling, batch, "JAX_COMPILATION_CACHE_DIR" in environment))
        now[0] += min(seconds, 30 if compiling else 100)
        return {"error": "no memory"} if batch == 2 else [{"name": "x", "rate": 5.0}]

    def part(n, alone=False):
        return accelerator.Part(str(n), "train_step", {"batch_size": n, "rounds": 3}, alone)

    planned = [part(1, alone=True), part(2), part(3), part(4), part(5)]
    records = parts.Records(tmp_path / "results.jsonl")
    timetable = accelerator.Timetable(records, tmp_path, 540, clock=lambda: now[0], run=run)
    accelerator.run_all(planned, timetable, 1)
    assert calls[0] == (False, 1, False)
    assert calls[1:5] == [(True, n, True) for n in (2, 3, 4, 5)]
    assert calls[5:] == [(False, n, True) for n in (2, 3, 4, 5)][: len(calls) - 5]
    assert now[0] <= 540
    assert [records.is_missing(str(n)) for n in (1, 2, 3)] == [False, True, False]
    text = accelerator.page(records, "a machine")
    assert "- 2: no memory" in text
    assert "| x | 3 | 5 |" in text


@pytest.mark.slow
def test_all_benchmarks_at_tiny_size(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", f"--out={tmp_path}"]
    subprocess.run(command, check=True, timeout=300)
    results = parts.Records(tmp_path / "results.jsonl").results
    assert {each["module"] for each in results.values()} == accelerator.TABLES.keys()
    assert all(each["rows"] for each in results.values())
    assert "Not measured" not in (tmp_path / "results.md").read_text()


# --- bytes moved ---

HLO = """HloModule jit_step

%body.1 (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %g = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %f = f32[8,128]{1,0:T(8,128)} fusion(%g), kind=kLoop, metadata={op_name="jit(step)/tanh"}
  ROOT %t = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%p, %f)
}

ENTRY %main (a: f32[8,128], b: bf16[1024]) -> (f32[8,128], bf16[1024]) {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = bf16[1024]{0:T(1024)} parameter(1)
  %copy-start = (bf16[1024]{0:T(1024)S(1)}, bf16[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%b)
  %copy-done = bf16[1024]{0:T(1024)S(1)} copy-done(%copy-start)
  %slice-start = ((bf16[1024]{0:T(1024)}), bf16[256]{0:T(256)S(1)}, s32[]{:S(2)}) slice-start(%b)
  %slice-done = bf16[256]{0:T(256)S(1)} slice-done(%slice-start)
  %sum = bf16[1024]{0:T(1024)} fusion(%copy-done, %slice-done, %b), kind=kLoop
  %while = (s32[], f32[8,128]{1,0:T(8,128)}) while(%a), body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %result = (f32[8,128]{1,0:T(8,128)}, bf16[1024]{0:T(1024)}) tuple(%while, %sum)
}
"""  # noqa: E501


def test_movements_in_a_program():
    """Counted by hand: arrays in S(1) are in the memory of the chip, which does not count."""
    found = {(each.operation, each.source): each.bytes for each in traffic.movements(HLO)}
    assert found == {
        ("fusion", "jit(step)/tanh"): 5 * 2 * 4 * 1024,  # a loop of five passes
        ("copy-start", ""): 2 * 1024,
        ("slice-start", ""): 2 * 256,
        ("fusion", ""): 2 * 2 * 1024,  # of its three operands one is in the device's memory
    }
    assert traffic.moved_bytes(HLO) == sum(found.values())
    assert traffic.by_source(traffic.movements(HLO))[0] == ("other: tanh", 40960)
    without = traffic.movements(HLO, on_chip=False)
    assert [each.bytes for each in without] == [5 * 2 * 4 * 1024, 2 * (3 * 1024 + 256)]


def test_roofline():
    """The longer of both times limits a step."""
    device = roofline.Device("device", peak=1e12, bandwidth=1e9)
    found = {"name": "config", "batch_size": 8, "flops": 2e12, "moved": 1e9, "moved_without": 4e9}
    row = roofline.limits(found, device)
    assert (row["computing"], row["moving"], row["moving_without"]) == (2, 1, 4)
    assert (row["share"], row["share_without"], row["rate"]) == (1, 0.5, 4)
    on_cpu = {"name": "config", "batch_size": 8, "flops": 2e12}  # Without a topology.
    assert len(roofline.rows([found, on_cpu, {"error": "not done"}])) == len(roofline.DEVICES)
