"""The benchmarks at tiny size: paired timing, counts and tables against known values."""

from __future__ import annotations

import itertools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pretrained
from benchmarks import harness, hlo, memory, paired, peer, programs, startup, tables, timed
from benchmarks.__main__ import main as command
from benchmarks.__main__ import parse
from benchmarks.harness import Contestant, Program
from benchmarks.programs import load_config
from benchmarks.records import Records
from errors import InputError

DIGITS = "configs/vp/digits_ddpmpp_continuous.py"
NCSNPP, DDPM = "configs/ve/church_ncsnpp_continuous.py", "configs/vp/ddpm/cifar10_continuous.py"
BATCH = "training.batch_size=4"
TINY = ("model.nf=8", "model.ch_mult=(1,)", "model.num_res_blocks=1", "model.attn_resolutions=()")
SAME = ("model.ch_mult=(1,2)", "model.num_res_blocks=1", "data.image_size=8", "model.dropout=0.0")
SAME += ("training.batch_size=2",)
OF_DDPM = "model.nf=32", "model.attn_resolutions=(4,)", "model.attend_after_each_up_block=True"
IN_DIFFUSERS = {  # networks that diffusers has: (config, overrides)
    "NCSN++": (NCSNPP, (*SAME, "model.nf=8", "model.attn_resolutions=()")),
    "DDPM": (DDPM, (*SAME, *OF_DDPM)),
}


def tiny_experiment():
    return programs.make_experiment(DIGITS, [*TINY, BATCH])


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
    assert harness.ratio({"a": [1, 2, 4], "b": [3, 4, 4]}, "a", "b") == 2  # of 3, 2 and 1


def test_rows_of_contestants():
    """Ratios are those of work per second; that to matrix products is one of FLOPs per second."""
    own = Contestant("own", "", {}, {"peer": "peer", "share": "product"})
    others = [Contestant(name, "", {}) for name in ("peer", "product")]
    amounts = {
        "own": (10, 5e12, {"parameters": 7}),
        "peer": (20, 8e12, {}),
        "product": (0, 3e13, {}),
    }
    of = {name: Program(int, *each) for name, each in amounts.items()}
    row, _, product = harness.rows([own, *others], of, {"own": [1], "peer": [4], "product": [3]})
    assert (row["rate"], row["tflops"], row["parameters"]) == (10, 5, 7)
    assert (row["peer"], row["share"], product["rate"]) == (2, 0.5, None)
    lines = tables.table([row, product], paired.COLUMNS)
    assert "compile" not in lines[0]  # Columns without values are omitted.
    assert lines[-1].count("|") == lines[0].count("|")


def test_processes(tmp_path):
    """They have variables and code of their own, raise what a function raises, and are timed."""
    (tmp_path / "sde_lib.py").write_text("WHERE = 'other checkout'\n")
    assert harness.isolated(os.getenv, "SOMETHING", environment={"SOMETHING": "x"}) == "x"
    with pytest.raises(ZeroDivisionError):
        harness.isolated(divmod, 1, 0)
    with harness.process(checkout=str(tmp_path)) as process:
        assert process.submit(eval, "__import__('sde_lib').WHERE").result() == "other checkout"
    size = {"kind": "float32", "size": 256, "count": 1}
    one = Contestant("one", "benchmarks.timed:products", size)
    two = Contestant("two", "benchmarks.timed:products", size | {"count": 3}, {"share": "one"})
    first, second = harness.compare([one, two], rounds=2)
    assert second["share"] == pytest.approx(second["tflops"] / first["tflops"], rel=0.5)


def test_which_programs_take_part():
    arguments = [f"--config={DIGITS}", "--variant=model.nf=8", "--variant=model.nf=16"]
    options = parse(["sampling", *arguments, "--against=/other", "--batch_size=3"])
    found = {each.name: each for each in paired.contestants(options)}
    product, *names = found
    name = "vp/digits_ddpmpp_continuous model.nf={} {}"
    own = [name.format(nf, method) for nf in (8, 16) for method in ("pc", "solver")]
    assert names == [each for title in own for each in (f"{title}, code of /other", title)]
    last = found[own[-1]]
    assert last.rivals == {"share": product, "against": f"{last.name}, code of /other"}
    assert last.arguments["overrides"] == ["model.nf=16", "training.batch_size=3"]
    assert last.arguments["method"] == "solver"


def test_counts():
    """A product, and a train step: three forward passes; remat and accumulation change nothing."""
    a, b = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((32, 16), "float32")
    compiled = programs.compile_stages(jax.jit(jnp.matmul), a, b)
    assert compiled.flops == 2 * 64 * 32 * 16
    assert compiled.memory["arguments"] == 4 * (64 * 32 + 32 * 16)
    assert compiled.peak >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
    experiment = tiny_experiment()
    step, forward, derivative = (
        programs.count_flops(*program(experiment)) for program in programs.PROGRAMS.values()
    )
    assert step == pytest.approx(3 * forward, rel=0.1)
    assert derivative == pytest.approx(2 * forward, rel=0.15)
    config = experiment.config.copy_and_resolve_references()
    config.update_from_flattened_dict({"training.remat": True, "training.accumulate": 2})
    assert programs.step_flops(config) == step


@pytest.mark.parametrize(
    ("case", "options", "evaluations"),
    [
        ("train_step", {}, 1),
        ("forward", {}, 1),
        ("sampling", {"levels": 25, "method": "pc"}, 25),  # The config has no corrector.
        ("sampling", {"levels": 25, "method": "solver"}, 20),
        pytest.param("likelihood", {}, None, marks=pytest.mark.slow),
        ("input_pipeline", {"in_memory": True}, timed.BATCHES),
    ],
)
def test_cases(case, options, evaluations):
    """Each runs; its work is the images of a batch, times the steps, evaluations or batches."""
    program = getattr(timed, case)(DIGITS, [*TINY, BATCH], **options)
    program.run()
    assert program.work == 4 * (evaluations or program.facts["evaluations"])
    if case != "input_pipeline":
        assert program.flops > 0
        assert program.facts["parameters"] == programs.parameters(tiny_experiment())


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
    """The number of parameters is equal, and so is the loss for equal parameters. It trains."""
    experiment = programs.make_experiment(*IN_DIFFUSERS[kind])
    config = experiment.config
    pytorch = peer.Peer(config)
    assert pytorch.parameters == programs.parameters(experiment)
    assert "same network" in peer.title(config, False)

    pytorch.network.save_pretrained(tmp_path)
    params = pretrained.read(tmp_path, experiment.network, experiment.config).ema
    pixels, noise, level = pytorch.images(), pytorch.normal(), torch.tensor([300, 800])
    flip = torch.zeros((2, 1, 1, 1), dtype=bool)
    peer_loss = pytorch.loss(pixels, level, noise, flip).item()
    t = jnp.linspace(experiment.sde.t_min, experiment.sde.T, peer.LEVELS)[level.numpy()]
    x, z = (jnp.moveaxis(jnp.asarray(each.numpy()), 1, -1) for each in (pixels, noise))

    @jax.jit
    def own_loss(params, x):
        x = experiment.prepare(jax.random.key(0), x, flip=False)
        return experiment.loss(params, x, t, z).mean()

    np.testing.assert_allclose(peer_loss, own_loss(params, x), rtol=1e-3)

    training = peer.Training(pytorch)
    before = [each.detach().clone() for each in training.weights]
    for _ in range(3):
        training.step()
    weights, ema = (
        max((a - b).abs().max().item() for a, b in zip(before, after))
        for after in (training.weights, training.ema)
    )
    assert weights > ema > 0  # The average lags behind.


def test_divergence_of_the_peer(torch):
    """The divergence of 3 x is 3 for each of the 192 entries."""
    found = peer.Peer(load_config(*IN_DIFFUSERS["NCSN++"]))
    x = found.normal()
    last, traces = peer.divergence(found, x, lambda x, level: 3 * x, 4)
    np.testing.assert_allclose(traces, [4 * 3 * 192] * 2, rtol=1e-5)
    np.testing.assert_allclose(last, 1.003**4 * x, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "evaluations"),
    [("train_step", 1), ("forward", 1), ("sampling", 10), ("likelihood", 10)],
)
def test_cases_of_the_peer(torch, case, evaluations):
    program = getattr(peer, case)(*IN_DIFFUSERS["DDPM"])
    program.run()
    assert program.work == 2 * evaluations


def test_nearest_network_of_diffusers(monkeypatch):
    flagship = load_config("configs/ve/cifar10_ncsnpp_continuous.py")
    near = peer.nearest(flagship).model
    assert (near.nf, near.num_res_blocks, near.progressive) == (128, 4, "output_skip")
    assert "nearest network" in peer.title(flagship, False)
    ddpmpp = load_config("configs/vp/cifar10_ddpmpp_continuous.py")
    assert peer.nearest(ddpmpp).model.name == "ddpm"
    with pytest.raises(InputError, match="model.name"):
        peer.nearest(load_config("configs/ve/ncsnv2/cifar10.py"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install torch diffusers"):
        peer.Peer(ddpmpp)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("no_such_case", ["CASE", "no_such_case", "train_step"]),
        ("forward --rounds=0", ["--rounds=0", "at least 1"]),
        ("forward --no_such_flag", ["--no_such_flag"]),
        ("forward --config=configs/no.py", ["configs/no.py does not exist"]),
        ("forward --config=errors.py", ["errors.py", "get_config"]),
        (f"forward --config={DIGITS} --set=model.nff=3", ["--set=model.nff=3", DIGITS]),
        (f"forward --config={DIGITS} --set=model.nf=many", ["--set=model.nf=many"]),
        (f"memory --config={DIGITS} --shape=1by1", ["--shape=1by1", "8x1"]),
    ],
)
def test_errors_are_one_line_that_names_what_is_wrong(arguments, named):
    with pytest.raises(SystemExit) as raised:
        command(arguments.split())
    text = str(raised.value)
    assert text.startswith("Error: ")
    assert "\n" not in text
    assert [each for each in named if each not in text] == []


def test_blocks_of_pages():
    page = "# Title\n\nText.\n"
    new = tables.set_block(page, "peers", "one\n")
    assert new == page + "\n<!-- peers: begin -->\n\none\n\n<!-- peers: end -->\n"
    assert tables.set_block(new, "peers", "two") == new.replace("one", "two")
    assert tables.block(new, "peers") in new
    assert tables.block(page, "peers") == ""


def test_results_are_resumed_and_errors_tried_again(tmp_path, monkeypatch):
    """A killed run leaves an incomplete line, which is skipped."""
    compiled, path = [], tmp_path / "folder" / "memory.jsonl"

    def run(function, path, *rest, environment):
        compiled.append(path)
        if len(compiled) == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"peak": 5}

    monkeypatch.setattr(harness, "isolated", run)
    options, configs = parse(["memory"]), [DIGITS, NCSNPP]
    for expected in ("out of memory", None, None):
        records = Records(path)
        rows = [memory.measure(records, each, "1x1", options) for each in configs]
        assert (expected in rows[1]["error"]) if expected else (rows[1]["peak"] == 5)
        path.write_text(path.read_text() + '{"key": "c", "x"')
    assert compiled == [DIGITS, NCSNPP, NCSNPP]
    assert rows[0]["name"] == "vp/digits_ddpmpp_continuous"


@pytest.mark.slow
def test_memory_of_a_step():
    """On two simulated devices, in a new process."""
    overrides = [*TINY, "training.batch_size=8"]
    found = harness.isolated(memory.analyze, DIGITS, overrides, 2, None, "train_step")
    assert found["parameters"] == programs.parameters(tiny_experiment())
    half_of_images = 4 * 64
    assert found["arguments"] == pytest.approx(16 * found["parameters"] + half_of_images, rel=0.01)
    assert found["all-reduce"] == pytest.approx(4 * found["parameters"], rel=0.05)
    assert found["fits_card"] == "yes"


def test_starts(monkeypatch):
    """A warm start uses the cache folder of its cold start."""
    folders = []

    def run(function, *arguments, environment):
        folders.append(environment["JAX_COMPILATION_CACHE_DIR"])
        return {"total": 10.0 if folders.count(folders[-1]) == 1 else 2.0}

    monkeypatch.setattr(harness, "isolated", run)
    cold, warm = startup.measure(DIGITS, [])
    assert folders[0] == folders[1]
    assert (cold["total"], warm["total"], warm["share"]) == (10.0, 2.0, 0.2)


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


def test_bytes_moved_by_a_program():
    """Counted by hand: arrays in S(1) are in the memory of the chip, which does not count.

    A loop of five passes; a copy, and a slice of it; a fusion, of whose three operands one is in
    the device's memory.
    """
    loop = 5 * 2 * 4 * 1024
    assert hlo.moved_bytes(HLO) == loop + 2 * 1024 + 2 * 256 + 2 * 2 * 1024
    assert hlo.moved_bytes(HLO, on_chip=False) == loop + 2 * (3 * 1024 + 256)
