"""Execution of samplers: one loop over a compiled step, on one device or on a mesh of devices.

A `Task` states what is computed for a batch of events. Its arrays (parameters of the score, keys,
measurements) are arguments of the compiled programs, not constants in them; everything else, such
as the sampler, identifies the program. So a task of the same kind and shapes compiles once.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

import sampling
import sharding
from api.arguments import is_traced
from api.scores import function_of
from controllable import methods
from controllable.measurements import Evidence
from errors import NotFiniteError
from runs import progress
from sampling import Sampler, Samples
from sde_lib import SDE, Score
from solvers.loop import Loop, static


def bound(score: Score) -> Score:
    """Return a score as samplers take it, inside of a compiled program.

    A score of our own states how it is guided (`bind`); any other one becomes a plain function.
    """
    return score.bind() if hasattr(score, "bind") else function_of(score)


class Task(Protocol):
    """A batch of events to compute: a pytree whose static part identifies the program."""

    @property
    def sampler(self) -> Sampler: ...

    def loop(self) -> tuple[Loop, Array]:
        """Return the loop, and the states (B, ...) that it starts from."""
        ...


@struct.dataclass
class FromPrior:
    """One event of the prior for each of the keys (B,)."""

    score: Score
    keys: Array
    temperature: Array
    sde: SDE = static()
    shape: tuple[int, ...] = static()
    sampler: Sampler = static()

    def loop(self) -> tuple[Loop, Array]:
        prior = sampling.prior_sample(self.keys, self.sde, (len(self.keys), *self.shape))
        return self.sampler.loop(self.keys, bound(self.score)), self.temperature * prior


@struct.dataclass
class FromPosterior:
    """One event given each of the measurements, for the keys (B,)."""

    score: Score
    keys: Array
    measurement: Evidence
    sde: SDE = static()
    shape: tuple[int, ...] = static()
    sampler: Sampler = static()
    method: methods.Chosen = static()
    support: tuple[float, float] | None = static()

    def loop(self) -> tuple[Loop, Array]:
        loop, x = methods.posterior_loop(
            *(self.method, self.sampler, self.keys, bound(self.score), self.sde),
            *(self.measurement, self.shape),
            support=self.support,
        )
        return loop, x


@struct.dataclass
class AlongFlow:
    """The states that the probability flow maps x (B, ...) to."""

    score: Score
    x: Array
    sampler: Sampler = static()

    def loop(self) -> tuple[Loop, Array]:
        return self.sampler.loop(None, bound(self.score)), self.x


# --- execution ------------------------------------------------------------------------------------


Program = tuple[Any, tuple[Any, ...]]
"""What identifies a compiled program: the structure of a task, and its leaves without arrays."""


def _separate(task: Task) -> tuple[Program, list[Any]]:
    """Return the program and the arrays of a task."""
    leaves, structure = jax.tree.flatten(task)
    arrays = [leaf if eqx.is_array(leaf) else None for leaf in leaves]
    others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    return (structure, others), arrays


def _loop_of(program: Program, arrays: list[Array | None]) -> tuple[Loop, Array]:
    structure, others = program
    return jax.tree.unflatten(structure, eqx.combine(arrays, list(others))).loop()


@functools.partial(jax.jit, static_argnums=0)
def _whole(program: Program, arrays: list[Array | None]) -> Samples:
    loop, x = _loop_of(program, arrays)
    return loop.run(x)


def _mesh_of(arrays: list[Array | None]) -> Mesh | AbstractMesh | None:
    """Return the mesh over which arrays are split, if any."""
    found = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arrays))
    named = (each for each in found if isinstance(each, NamedSharding))
    return next((each.mesh for each in named if not each.is_fully_replicated), None)


def _split_carry(mesh: Mesh | AbstractMesh | None, carry: Any) -> Any:
    """Return a carry that is split over the devices, so that one program executes all steps.

    XLA would replicate zeros, with which most loops start, but not what follows from them.
    """

    def split_leaf(leaf: Array) -> Array:  # JAX fails for empty constants.
        if mesh is None or not leaf.size:
            return leaf
        return lax.with_sharding_constraint(leaf, sharding.along_axis(mesh))

    return jax.tree.map(split_leaf, carry)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(mesh: Mesh | AbstractMesh | None, program: Program, arrays: list[Array | None]) -> Any:
    loop, x = _loop_of(program, arrays)
    return _split_carry(mesh, loop.start(x))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _advance(
    mesh: Mesh | AbstractMesh | None,
    program: Program,
    arrays: list[Array | None],
    carry: Any,
    step: np.ndarray,
) -> tuple[Any, Array]:
    """Return the next carry, and a number that is computed with it, to wait for."""
    carry = _split_carry(mesh, _loop_of(program, arrays)[0].step(step, carry))
    # A whole leaf, because a part of it would be a message between devices.
    return carry, 0 + min(jax.tree.leaves(carry), key=lambda leaf: leaf.size)


@functools.partial(jax.jit, static_argnums=0)
def _finish(program: Program, arrays: list[Array | None], carry: Any) -> Samples:
    return _loop_of(program, arrays)[0].finish(carry)


def run(task: Task, text: str) -> Samples:
    """Return the samples of a task; `text` says what is computed, such as "drawing 64 samples".

    A step is submitted while the one before is computed, so that devices do not wait for the
    progress bar. Inside of a function that JAX compiles, the loop is a part of that program.
    """
    steps, unit = task.sampler.steps, task.sampler.unit
    program = _separate(task)
    if is_traced(task):
        return _whole(*program)
    if steps is None or steps == 1:
        with progress.waiting(f"{text} with {'one step' if steps else 'adaptive steps'}"):
            return jax.block_until_ready(_whole(*program))
    mesh = _mesh_of(program[1])
    carry = _start(mesh, *program)
    if is_traced(carry):  # The score is a function that holds values of such a function.
        return _whole(*program)
    with progress.counting(text, steps, unit) as update:
        previous = None
        for step in range(steps):
            carry, done = _advance(mesh, *program, carry, np.int32(step))
            jax.block_until_ready(previous)
            update(step)
            previous = done
        return _finish(*program, carry)


# --- batches --------------------------------------------------------------------------------------

Place = Callable[[Any], Any]
"""Arrays (B, ...) -> the same arrays, split over the devices that compute their rows."""

MakeTask = Callable[[Array, np.ndarray, Place], Task]
"""(keys (B,), numbers of the events (B,), place) -> the task that computes these events."""


def in_batches(
    make_task: MakeTask,
    key: Array,
    first: int,
    count: int,
    batch_size: int,
    shape: tuple[int, ...],
    mesh: Mesh | None = None,
) -> Samples:
    """Return the events number first .. first + count - 1, computed in batches of one size.

    Event i depends on the key and on i, not on the batch size. On a mesh, the batches are split
    over the devices, and the result is complete on each host; inside of a function that JAX
    compiles, its devices are those of that function. Raises NotFiniteError if an event is not
    finite, and InputError if the events, which have this shape, do not fit the memory.
    """
    mesh = None if is_traced(key) else mesh
    place = functools.partial(split, mesh)
    devices = 1 if mesh is None else mesh.size
    size = -(-min(count, batch_size) // devices) * devices
    entries = (size + count // sharding.WORKSPACE) * math.prod(shape)
    sharding.check_memory(entries, f"A result of {count} events of shape {shape}")
    parts: list[Samples] = []
    for start in range(first, first + count, size):
        numbers = np.arange(start, start + size)
        task = make_task(place(sampling.image_keys(key, numbers)), numbers, place)
        valid = min(size, first + count - start)
        samples = run(task, f"drawing {valid} samples")
        if mesh is not None:
            samples = sharding.fetch(samples)
        samples = samples._replace(frames=samples.frames.swapaxes(0, 1))
        parts.append(jax.tree.map(operator.itemgetter(slice(valid)), samples))
        check_finite(parts[-1].bad_step, task.sampler)
    xp: Any = jnp if mesh is None else np
    whole = parts[0]
    if len(parts) > 1:
        whole = jax.tree.map(lambda *leaves: xp.concatenate(leaves), *parts)
    return whole._replace(frames=whole.frames.swapaxes(0, 1))


def by_rows(mesh: Mesh | None, compute: Callable[..., Any], *rows: Any) -> Any:
    """Return compute(*rows), with the rows split over the devices of a mesh, if there is one.

    They are filled up to a number that the devices divide. Each result has one row for each event.
    """
    if mesh is None or is_traced(rows):
        return compute(*rows)
    count = len(jax.tree.leaves(rows)[0])
    filled = np.arange(-(-count // mesh.size) * mesh.size) % count
    found = compute(*split(mesh, jax.tree.map(lambda each: each[filled], rows)))
    if jax.process_count() > 1:
        found = sharding.fetch(found)
    return jax.tree.map(lambda leaf: leaf[:count], found)


def split(mesh: Mesh | None, tree: Any) -> Any:
    """Return arrays (B, ...) split over the devices, if there is a mesh."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)

    def put(leaf: Any) -> Array:
        # Keys are split by their data.
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return sharding.shard_complete(mesh, leaf)
        data = sharding.shard_complete(mesh, jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return jax.tree.map(put, tree)


def check_finite(bad_step: Array | np.ndarray, sampler: Sampler) -> None:
    """Raise NotFiniteError if an event is not finite, unless the values are not known yet."""
    if is_traced(bad_step):
        return
    failed = bad_step[bad_step > 0]
    if not len(failed):
        return
    where = ""
    if sampler.steps is not None:
        where = f"; the first failed at {sampler.unit} {int(failed.min())} of {sampler.steps}"
    raise NotFiniteError(
        f"{len(failed)} of {len(bad_step)} events are not finite{where}.",
        f"The sampler is {sampler.title}. To correct it, {sampler.advice}; or check the score at "
        "small times and, if there is one, the log-likelihood: where it is minus infinity, raise "
        "langevin_steps.",
    )
