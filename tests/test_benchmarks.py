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
from benchmarks import __main__ as command
from benchmarks import harness, memory, peer, programs, tables, timed
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


def test_programs_alternate_and_ratios_are_medians_over_rounds():
    """With a simulated clock, which the programs advance. Ratios are those of work per second."""
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
    seconds = {"own": [1, 2, 4], "peer": [3, 4, 4]}
    assert harness.ratio(seconds, "own", "peer") == 2  # of 3, 2 and 1
    of = {"own": Program(int, 10, {"parameters": 7}), "peer": Program(int, 20, {})}
    row = harness.row(Contestant("own", "", {}, {"peer": "peer"}), of, seconds)
    assert row == {"name": "own", "seconds": 2, "rate": 5, "parameters": 7, "peer": 1}
    lines = tables.table([row], command.COLUMNS)
    assert "compile" not in lines[0]  # Columns without values are omitted.
    assert lines[-1].count("|") == lines[0].count("|")


def three(value):
    return Program(lambda: value, 3 * value, {})


@pytest.mark.slow
def test_processes(tmp_path):
    """They have variables and code of their own, raise what a function raises, and are timed."""
    (tmp_path / "sde_lib.py").write_text("WHERE = 'other checkout'\n")
    assert harness.isolated(os.getenv, "SOMETHING", environment={"SOMETHING": "x"}) == "x"
    with pytest.raises(ZeroDivisionError):
        harness.isolated(divmod, 1, 0)
    with harness.process(checkout=str(tmp_path)) as process:
        assert process.submit(eval, "__import__('sde_lib').WHERE").result() == "other checkout"
    one = Contestant("one", "tests.test_benchmarks:three", {"value": 1}, {"peer": "one"})
    (row,) = harness.compare([one], rounds=2)
    assert row["peer"] == 1


def test_which_programs_take_part():
    arguments = [f"--config={DIGITS}", "--variant=model.nf=8", "--variant=model.nf=16"]
    options = command.parse(["sampling", *arguments, "--against=/other", "--batch_size=3"])
    found = {each.name: each for each in command.contestants(options)}
    name = "vp/digits_ddpmpp_continuous model.nf={} {}"
    own = [name.format(nf, method) for nf in (8, 16) for method in ("pc", "solver")]
    assert [*found] == [each for title in own for each in (f"{title}, code of /other", title)]
    last = found[own[-1]]
    assert last.rivals == {"against": f"{last.name}, code of /other"}
    assert last.arguments["overrides"] == ["model.nf=16", "training.batch_size=3"]
    assert last.arguments["method"] == "solver"


@pytest.mark.parametrize(
    ("case", "options", "evaluations"),
    [
        pytest.param("train_step", {}, 1, marks=pytest.mark.slow),
        ("forward", {}, 1),
        pytest.param("sampling", {"levels": 25, "method": "pc"}, 25, marks=pytest.mark.slow),
        pytest.param("sampling", {"levels": 25, "method": "solver"}, 20, marks=pytest.mark.slow),
        pytest.param("likelihood", {}, None, marks=pytest.mark.slow),
        ("input_pipeline", {"in_memory": True}, timed.BATCHES),
    ],
)
def test_cases(case, options, evaluations):
    """Each runs; its work is the images of a batch, times the steps, evaluations or batches."""
    program = getattr(timed, case)(DIGITS, [*TINY, BATCH], **options)
    program.run()
    assert program.work == 4 * (evaluations or program.facts["evaluations"])


@pytest.fixture
def torch():
    """PyTorch on one thread: several would wait for each other where other tests run."""
    reason = "diffusers and PyTorch are not installed (requirements-dev.txt)"
    torch, _ = (pytest.importorskip(name, reason=reason) for name in ("torch", "diffusers"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.slow
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


@pytest.mark.slow
def test_cases_of_the_peer(torch):
    for make in (peer.train_step, peer.forward):
        program = make(*IN_DIFFUSERS["DDPM"])
        program.run()
        assert program.work == 2


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
        (f"forward --config={DIGITS} --set=model.nff=3", ["model.nff = '3' is not", "model.nf?"]),
        (f"forward --config={DIGITS} --set=model.nf=many", ["model.nf = 'many' must be"]),
        (f"memory --config={DIGITS} --shape=1by1", ["--shape=1by1", "8x1"]),
    ],
)
def test_errors_are_one_line_that_names_what_is_wrong(arguments, named):
    with pytest.raises(SystemExit) as raised:
        command.main(arguments.split())
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


def test_results_are_resumed_and_errors_tried_again(tmp_path):
    """A killed run leaves an incomplete line, which is skipped."""
    computed, path = [], tmp_path / "folder" / "results.jsonl"
    for expected in ({"error": "out of memory"}, {"peak": 5}, {"peak": 5}):
        records = Records(path)

        def compute(result=expected):
            computed.append(result)
            return result

        assert records.cached("a", compute) == expected | {"key": "a"}
        path.write_text(path.read_text() + '{"key": "c", "x"')
    assert len(computed) == 2


@pytest.mark.slow
def test_memory_of_a_step():
    """On two simulated devices, in a new process."""
    overrides = [*TINY, "training.batch_size=8"]
    found = harness.isolated(memory.analyze, DIGITS, overrides, 2, "")
    assert found["parameters"] == programs.parameters(programs.make_experiment(DIGITS, TINY))
    half_of_images = 4 * 64
    assert found["arguments"] == pytest.approx(16 * found["parameters"] + half_of_images, rel=0.01)
    assert found["all-reduce"] == pytest.approx(4 * found["parameters"], rel=0.05)
    assert found["fits_card"] == "yes"


def test_a_compilation_that_fails_is_a_row(monkeypatch):
    def fail(*arguments, environment):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(harness, "isolated", fail)
    row = memory.measure(DIGITS, "1x8", command.parse(["memory"]))
    assert (row["name"], row["devices"]) == ("vp/digits_ddpmpp_continuous", 8)
    assert "out of memory" in row["error"]


def test_counts_of_a_product():
    a, b = jax.ShapeDtypeStruct((64, 32), "float32"), jax.ShapeDtypeStruct((32, 16), "float32")
    compiled = programs.compile_stages(jax.jit(jnp.matmul), a, b)
    assert compiled.flops == 2 * 64 * 32 * 16
    assert compiled.memory["arguments"] == 4 * (64 * 32 + 32 * 16)
    assert compiled.peak >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
