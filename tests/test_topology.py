"""Programs compiled for absent TPUs: messages, and memory saved by recomputation."""

import collections
import importlib.util

import jax
import jax.numpy as jnp
import pytest

import sharding
from benchmarks import programs
from benchmarks.hlo import collectives
from experiment import Experiment
from tests import tiny
from tests.refusal import refused
from tests.test_sharding import sizes


@pytest.fixture
def _libtpu(monkeypatch):
    pytest.importorskip("libtpu", reason="TPU's compiler is not installed (pip install libtpu)")
    jax.jit(lambda: 0)()  # XLA reads its flags now, once; libtpu would abort at the CPU's flags.
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def compiled_step(**fields):
    """The training step compiled for eight TPUs, and its experiment."""
    fields = {"training.batch_size": 8, "eval.batch_size": 8} | fields
    experiment = Experiment(tiny.config(**fields), programs.tpus("v5e:2x4"))
    return programs.compile_stages(*programs.train_step(experiment)), experiment


@pytest.mark.usefixtures("_libtpu")
def test_tpus_send_the_gradients_once_and_recomputation_saves_memory():
    compiled, experiment = compiled_step()
    found = collectives(compiled.call.as_text())
    assert found.keys() == {"all-reduce"}
    reduced, grads = collections.Counter(found["all-reduce"]), sizes(experiment.abstract_params)
    # Biases with equal gradients: 5 of time embeddings and 2 of shortcuts.
    assert grads - reduced == {4 * 8: 7}
    assert sum((reduced - grads).elements()) < 200  # Numbers for the metrics.
    assert compiled.flops is None
    assert compiled.peak > 16 * sum(sizes(experiment.abstract_params).elements()) / 4
    assert compiled.memory["program"] > 0
    recomputing, _ = compiled_step(**{"training.remat": True})
    assert recomputing.memory["arguments"] == compiled.memory["arguments"]
    assert recomputing.memory["temporaries"] < compiled.memory["temporaries"]
    refused("--topology=v9:1x1 is unknown to libtpu", programs.tpus, "v9:1x1")


@pytest.mark.usefixtures("_libtpu")
@pytest.mark.parametrize(("precision", "width"), [("highest", 4), ("default", 2)])
def test_tpus_gather_split_parameters_and_scatter_their_gradients(precision, width):
    """Gradients are summed and split in one operation, which CPUs lack.

    bfloat16 operands are gathered as bfloat16.
    """
    mesh = sharding.make_mesh(programs.tpus("v5e:2x4"))
    rows, size = sharding.along_axis(mesh), 256

    def loss(w, x):
        w = sharding.gather(mesh, w)
        return jnp.square(jnp.tanh(jnp.tanh(x @ w) @ w)).sum()

    step = jax.jit(jax.grad(loss), in_shardings=rows, out_shardings=rows)
    w, x = (jax.ShapeDtypeStruct((count, size), "float32") for count in (size, 64))
    with jax.default_matmul_precision(precision):
        found = collectives(step.lower(w, x).compile().as_text())
    assert found == {"all-gather": [width * size**2], "all-reduce-scatter": [4 * size**2]}


def test_missing_libtpu_is_reported(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused("--topology=v5e:2x4 needs .*: pip install libtpu", programs.tpus, "v5e:2x4")
