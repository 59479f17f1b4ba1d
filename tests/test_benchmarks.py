"""The benchmarks at tiny size: paired timing, counts, tables and costs against known values."""

from __future__ import annotations

import itertools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pretrained
from benchmarks import (
    analysis,
    cost,
    harness,
    paired,
    peer,
    programs,
    startup,
    tables,
    timed,
    traffic,
)
from benchmarks.__main__ import CASES, parse
from benchmarks.__main__ import main as command
from benchmarks.configs import ROOT, all_configs, config_name, load_config
from benchmarks.harness import Contestant, Program
from benchmarks.records import Records
from errors import InputError
from tests import tiny

DIGITS = "configs/vp/digits_ddpmpp_continuous.py"
FLAGSHIP = "configs/ve/cifar10_ncsnpp_continuous.py"
NCSNPP, DDPM = "configs/ve/church_ncsnpp_continuous.py", "configs/vp/ddpm/cifar10_continuous.py"
TINY = ("model.nf=8", "model.ch_mult=(1,)", "model.num_res_blocks=1", "model.attn_resolutions=()")
SAME = ("model.ch_mult=(1,2)", "model.num_res_blocks=1", "data.image_size=8", "model.dropout=0.0")
OF_DDPM = "model.nf=32", "model.attn_resolutions=(4,)", "model.attend_after_each_up_block=True"
IN_DIFFUSERS = {  # networks that diffusers has: (config, overrides)
    "NCSN++": (NCSNPP, (*SAME, "model.nf=8", "model.attn_resolutions=()")),
    "DDPM": (DDPM, (*SAME, *OF_DDPM)),
}


def tiny_experiment():
    return programs.make_experiment(DIGITS, [*TINY, "training.batch_size=4"])


# --- paired timing ---


def test_programs_alternate_and_ratios_are_medians_over_rounds():
    """With a simulated clock, which the programs advance."""
    now, order = itertools.count(), []

    def timed_run(name, ticks):
        def run():
            order.append(name)
            for _ in range(ticks):
                next(now)

        return lambda: harness.seconds_of(run, clock=lambda: next(now))

    found = harness.alternate({"slow": timed_run("slow", 8), "quick": timed_run("quick", 2)}, 3)
    assert order == ["slow", "quick"] * 3
    assert found == {"slow": [9] * 3, "quick": [3] * 3}
    assert harness.ratio(found, "quick", "slow") == 3
    assert harness.ratio({"a": [1, 2, 4], "b": [3, 4, 4]}, "a", "b") == 2  # of 3, 2 and 1


def test_rows_of_contestants():
    """Ratios are those of work per second; that to matrix products is one of FLOPs per second."""
    own = Contestant("own", "", {}, {"peer": "peer", "share": "product"})
    others = [Contestant(name, "", {}) for name in ("peer", "product")]
    of = {
        "own": Program(int, 10, 5e12, {"parameters": 7}),
        "peer": Program(int, 20, 8e12, {}),
        "product": Program(int, 0, 30e12, {}),
    }
    seconds = {"own": [1, 1], "peer": [4, 4], "product": [3, 3]}
    row, _, product = harness.rows([own, *others], of, seconds)
    assert (row["rate"], row["tflops"], row["parameters"]) == (10, 5, 7)
    assert (row["peer"], row["share"]) == (2, 0.5)
    assert product["rate"] is None
    lines = tables.table([row, product], paired.COLUMNS)
    assert "compile" not in lines[0]  # Columns without values are omitted.
    assert lines[-1].count("|") == lines[0].count("|")


def test_processes(tmp_path):
    """They have variables and code of their own, and raise what their function raises."""
    (tmp_path / "sde_lib.py").write_text("WHERE = 'other checkout'\n")
    assert harness.isolated(os.getenv, "SOMETHING", environment={"SOMETHING": "x"}) == "x"
    with pytest.raises(ZeroDivisionError):
        harness.isolated(divmod, 1, 0)
    with harness.process(checkout=str(tmp_path)) as process:
        assert process.submit(eval, "__import__('sde_lib').WHERE").result() == "other checkout"


def test_comparison_in_processes():
    size = {"kind": "float32", "size": 16, "count": 1}
    one = Contestant("one", "benchmarks.timed:products", size)
    two = Contestant("two", "benchmarks.timed:products", size | {"count": 3}, {"share": "one"})
    first, second = harness.compare([one, two], rounds=2)
    assert (first["flops"], second["flops"]) == (2 * 16**3, 6 * 16**3)
    assert second["share"] == pytest.approx(second["tflops"] / first["tflops"], rel=0.5)


def test_which_programs_take_part():
    arguments = [f"--config={DIGITS}", "--variant=model.nf=8", "--variant=model.nf=16"]
    options = parse(["sampling", *arguments, "--against=/other", "--batch_size=3"])
    found = {each.name: each for each in paired.contestants(options)}
    product, *names = found
    assert product == "matrix products, float32"
    name = "vp/digits_ddpmpp_continuous model.nf={} {}"
    own = [name.format(nf, method) for nf in (8, 16) for method in ("pc", "solver")]
    assert names == [each for title in own for each in (f"{title}, code of /other", title)]
    last = found[own[-1]]
    assert last.rivals == {"share": product, "against": f"{last.name}, code of /other"}
    assert last.arguments["batch_size"] == 3
    assert last.arguments["method"] == "solver"


# --- our programs ---


def test_flops_and_memory_of_a_product():
    a, b = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((32, 16), "float32")
    compiled = programs.compile_stages(jax.jit(jnp.matmul), a, b)
    assert compiled.flops == 2 * 64 * 32 * 16
    assert compiled.memory["arguments"] == 4 * (64 * 32 + 32 * 16)
    assert compiled.memory["results"] == 4 * 64 * 16
    assert compiled.peak >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert set(compiled.seconds) == {"trace", "lower", "compile"}


def test_flops_of_a_train_step():
    """They are three times those of a forward pass; remat and accumulation do not change them."""
    experiment = tiny_experiment()
    plain = programs.count_flops(*programs.train_step(experiment))
    forward = programs.count_flops(*programs.score(experiment))
    assert plain == pytest.approx(3 * forward, rel=0.1)
    assert programs.count_flops(*programs.derivative(experiment)) == pytest.approx(
        2 * forward, rel=0.15
    )
    config = experiment.config.copy_and_resolve_references()
    config.update_from_flattened_dict({"training.remat": True, "training.accumulate": 2})
    assert programs.step_flops(config) == plain


@pytest.mark.parametrize(
    ("case", "options", "evaluations"),
    [
        ("train_step", {"steps": 3}, 3),
        ("forward", {}, 1),
        ("sampling", {"levels": 25, "method": "pc"}, 25),  # The config has no corrector.
        ("sampling", {"levels": 25, "method": "solver"}, 20),
        pytest.param("likelihood", {"tolerance": 0.3}, None, marks=pytest.mark.slow),
        ("input_pipeline", {"batches": 2, "in_memory": True}, 2),
    ],
)
def test_cases(case, options, evaluations):
    """Each runs; its work is the images of a batch, times the steps, evaluations or batches."""
    overrides = () if case == "input_pipeline" else TINY
    program = getattr(timed, case)(DIGITS, overrides, 4, **options)
    program.run()
    assert program.work == 4 * (evaluations or program.facts["evaluations"])
    if case == "likelihood":  # One evaluation at the start, and three in each step.
        stages = (program.facts["evaluations"] - 1) / 3
        assert stages == pytest.approx(max(1, round(stages)))
    if case != "input_pipeline":
        assert program.flops > 0
        assert program.facts["parameters"] == programs.parameters(tiny_experiment())


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
    experiment = programs.make_experiment(path, overrides)
    config = experiment.config
    pytorch = peer.Peer(config)
    assert pytorch.parameters == programs.parameters(experiment)
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
        x = experiment.prepare(jax.random.key(0), x, flip=False)
        return experiment.loss(params, x, t, z).mean()

    np.testing.assert_allclose(peer_loss, own_loss(params, x), rtol=1e-3)


@pytest.mark.parametrize("kind", IN_DIFFUSERS)
def test_train_step_of_the_peer(torch, kind):
    """The average lags behind the parameters."""
    path, overrides = IN_DIFFUSERS[kind]
    training = peer.Training(peer.Peer(load_config(path, overrides)), 2)
    before = [each.detach().clone() for each in training.weights]
    assert np.isfinite([training.step().item() for _ in range(3)]).all()

    def largest_change(after):
        return max((a - b).abs().max().item() for a, b in zip(before, after))

    assert largest_change(training.weights) > largest_change(training.ema) > 0


def test_divergence_of_the_peer(torch):
    """The divergence of 3 x is 3 for each of the 192 entries."""
    found = peer.Peer(load_config(*IN_DIFFUSERS["NCSN++"]))
    x = found.normal(2)
    last, traces = peer.divergence(found, x, lambda x, level: 3 * x, 4)
    np.testing.assert_allclose(traces, [4 * 3 * 192] * 2, rtol=1e-5)
    np.testing.assert_allclose(last, 1.003**4 * x, rtol=1e-5)


@pytest.mark.parametrize("case", ["train_step", "forward", "sampling", "likelihood"])
def test_cases_of_the_peer(torch, case):
    program = getattr(peer, case)(*IN_DIFFUSERS["DDPM"], batch_size=2)
    program.run()
    assert program.work == 2 * (peer.EVALUATIONS if case in ("sampling", "likelihood") else 1)


def test_nearest_network_of_diffusers():
    flagship = load_config(FLAGSHIP)
    near = peer.nearest(flagship).model
    assert (near.nf, near.num_res_blocks, near.progressive) == (128, 4, "output_skip")
    assert "nearest network" in peer.title(flagship, False)
    ddpmpp = load_config("configs/vp/cifar10_ddpmpp_continuous.py")
    assert peer.nearest(ddpmpp).model.name == "ddpm"
    with pytest.raises(InputError, match="model.name"):
        peer.nearest(load_config("configs/ve/ncsnv2/cifar10.py"))


# --- invalid input ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no_such_case"], ["CASE", "no_such_case", "train_step"]),
        (["forward", "--rounds=0"], ["--rounds=0", "at least 1"]),
        (["forward", "--no_such_flag"], ["--no_such_flag"]),
        (["forward", "--config=configs/no.py"], ["--config=configs/no.py"]),
        (["forward", "--config=errors.py"], ["--config=errors.py"]),
        (["forward", f"--config={DIGITS}", "--set=model.nff=3"], ["--set=model.nff=3", DIGITS]),
        (["forward", f"--config={DIGITS}", "--set=model.nf=many"], ["--set=model.nf=many"]),
    ],
)
def test_errors_are_one_line_that_names_what_is_wrong(arguments, named):
    with pytest.raises(SystemExit) as raised:
        command(arguments)
    text = str(raised.value)
    assert text.startswith("Error: ")
    assert "\n" not in text
    assert [each for each in named if each not in text] == []


def test_error_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install torch diffusers"):
        peer.Peer(load_config(*IN_DIFFUSERS["NCSN++"]))


def test_every_case_has_its_function():
    for name, case in CASES.items():
        module = {"paired:show": paired, "analysis:show": analysis, "cost:show": cost}
        assert callable(module.get(case.function, startup).show)
        assert name == "startup" or case.function != "startup:show"
        assert case.function != "paired:show" or callable(getattr(timed, name))


# --- records and pages ---


def test_records_resume(tmp_path):
    path = tmp_path / "folder" / "results.jsonl"
    records = Records(path)
    records.add("a", {"x": 1})
    records.add("b", {"error": "no memory"})
    path.write_text(path.read_text() + '{"key": "c", "x"')  # A killed run leaves such a line.
    records = Records(path)
    assert [records.is_missing(key) for key in "abc"] == [False, True, True]
    records.add("b", {"x": 2})
    records = Records(path)
    assert {key: each["x"] for key, each in records.results.items()} == {"a": 1, "b": 2}


def test_blocks_of_pages():
    page = "# Title\n\nText.\n"
    assert tables.block(page, "peers") == ""
    new = tables.set_block(page, "peers", "one\n")
    assert new == page + "\n<!-- peers: begin -->\n\none\n\n<!-- peers: end -->\n"
    assert tables.set_block(new, "peers", "two") == new.replace("one", "two")
    assert tables.block(new, "peers") in new


# --- memory, roofline and start-up ---


@pytest.mark.slow
def test_memory_of_a_step():
    """On two simulated devices, in a new process."""
    found = harness.isolated(analysis.analyze, DIGITS, TINY, analysis.Target(8, 2))
    assert found["parameters"] == programs.parameters(tiny_experiment())
    half_of_images = 4 * 64
    assert found["arguments"] == pytest.approx(16 * found["parameters"] + half_of_images, rel=0.01)
    assert found["all-reduce"] == pytest.approx(4 * found["parameters"], rel=0.05)


def test_equal_steps_are_compiled_once_and_failures_again(tmp_path, monkeypatch):
    """Configs that differ only in the SDE have the same step."""
    compiled = []

    def run(function, path, *rest, environment):
        compiled.append(config_name(path))
        if len(compiled) == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"peak": 5}

    monkeypatch.setattr(harness, "isolated", run)
    configs = [DIGITS, DIGITS.replace("/vp/", "/subvp/"), "configs/ve/digits_ncsnpp_continuous.py"]

    def measure():
        records = Records(tmp_path / "memory.jsonl")
        return analysis.measure(records, configs, [], [analysis.Target(1, 1)])

    *_, last = measure()
    assert "out of memory" in last["error"]
    rows = measure()
    assert compiled == [config_name(configs[i]) for i in (0, 2, 2)]
    assert [each.get("same") for each in rows] == [None, "vp/digits_ddpmpp_continuous", None]
    assert [each["fits_card"] for each in rows] == ["yes"] * 3
    assert len(all_configs()) > 40


def test_roofline():
    """The longer of both times limits a step."""
    device = analysis.Device("device", peak=1e12, bandwidth=1e9)
    found = {"name": "config", "batch_size": 8, "devices": 1, "flops": 2e12}
    found |= {"moved": 1e9, "moved_without": 4e9}
    row = analysis.limits(found, device)
    assert (row["computing"], row["moving"], row["moving_without"]) == (2, 1, 4)
    assert (row["share"], row["share_without"], row["rate"]) == (1, 0.5, 4)
    on_cpu = {"name": "config", "batch_size": 8, "flops": 2e12}  # Without a topology.
    rows = analysis.roofline([found, on_cpu, found | {"devices": 8}, {"error": "not done"}])
    assert len(rows) == len(analysis.DEVICES)


def test_starts(monkeypatch):
    """A warm start uses the cache folder of its cold start; each pair has a new folder."""
    folders = []

    def run(function, *arguments, environment):
        folders.append(environment["JAX_COMPILATION_CACHE_DIR"])
        return {"total": 10.0 if folders.count(folders[-1]) == 1 else 2.0}

    monkeypatch.setattr(harness, "isolated", run)
    cold, warm = startup.measure(DIGITS, [], starts=2)
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert (cold["total"], warm["total"], warm["share"]) == (10.0, 2.0, 0.2)


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


# --- costs ---


def step(peak: float, flops: float) -> dict:
    return {"peak": peak, "flops": flops}


def test_lines_and_hours():
    """Lines through batches of 1 and 8; a third of 100 TFLOP/s, for two hours."""
    assert [cost.at_batch(3.0, 10.0, batch) for batch in (1, 8, 128)] == [3, 10, 130]
    flops = 100e12 / 3 * 2 * 3600
    assert cost.hours(flops, cost.Device("", 100e12), 1 / 3) == pytest.approx(2)


@pytest.mark.parametrize(
    ("gigabytes", "batch", "devices"),
    [(0.5, 128, 1), (1, 128, 2), (10, 128, 32), (40, 6, 6), (70, 6, None)],
)
def test_devices_needed(gigabytes, batch, devices):
    """The state takes 12 GB, an image the given number; the batch is split evenly."""
    small, large = (step((12 + n * gigabytes) * 1e9, 0) for n in (1, 8))
    assert cost.devices_needed(small, large, batch) == devices


def test_cost_of_an_experiment():
    config = tiny.config(**{"training.batch_size": 16, "training.n_iters": 10})
    samples = {"forward": 1e9, "nfe": 20}
    row = cost.expected(config, step(2e9, 3e9), step(9e9, 24e9), samples, 0.5)
    assert (row["steps"], row["batch"], row["devices"]) == (10, 16, 1)
    assert row["memory"] == pytest.approx(17e9)
    assert row["flops"] == pytest.approx(10 * 48e9)
    assert row["A100, TF32"] == pytest.approx(480e9 / 78e12 / 3600)
    assert row["sampling"] == pytest.approx(config.eval.num_samples * 20e9 / 247.5e12 / 3600)


@pytest.mark.parametrize(
    ("path", "evaluations"),
    [
        (FLAGSHIP, 2000),  # Each step has a correction.
        ("configs/vp/ddpm/cifar10.py", 1000),
        ("configs/ve/ncsn/cifar10.py", 1000),  # 10 levels with 100 Langevin steps, no predictor
    ],
)
def test_evaluations(path, evaluations):
    assert cost.evaluations(load_config(path)) == evaluations


def test_the_page_of_costs_agrees_with_the_table_of_memory():
    """Its configs are listed; FLOPs are those of BENCHMARKS.md, whose last digits are rounded."""
    benchmarks = (ROOT / "docs" / "BENCHMARKS.md").read_text().partition("### Memory")[2]
    counted = {
        row["config"]: float(row["GFLOP"]) for row in tables.read_table(benchmarks, "config")
    }
    rows = {row["config"]: row for row in tables.read_table(cost.PAGE.read_text(), "config")}
    assert counted.keys() <= rows.keys() <= {config_name(path) for path in all_configs()}
    for name, row in rows.items():
        if counted.get(name, 0) > 20:
            images = int(row["steps"].replace(",", "")) * int(row["batch"])
            total = float(row["training, EFLOP"].replace(",", "")) * 1e18
            assert total == pytest.approx(images * counted[name] * 1e9, rel=0.04), name
