"""Scores that PyTorch or NumPy computes, as functions of JAX.

The primitive `external` calls one of three functions of a score on the host: its values, products
of its Jacobian with a tangent, and of a cotangent with its Jacobian. The latter two are derivatives
of the first, and transposes of each other, so that samplers, densities and posteriors of such a
score need nothing else. They are linear in their last argument, so that its derivatives follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from api.arguments import checked
from errors import InputError
from sde_lib import Score

if TYPE_CHECKING:
    import torch

Host = Callable[..., np.ndarray]
"""Of x (B, ...), t (B,) and, for products, a tangent or cotangent like x; returns one like x."""


class Functions(NamedTuple):
    """The functions of one score; products are None if it has no derivatives."""

    value: Host
    forward: Host | None = None
    backward: Host | None = None


NO_DERIVATIVE = (
    "This needs derivatives of a NumPy score, which are not available. Samplers without guidance "
    "work; for densities and posteriors write the score in JAX or PyTorch."
)
NO_SECOND = (
    "This needs second derivatives of a PyTorch score, which are not available; write the score in "
    "JAX."
)


@checked
def from_numpy(score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Score:
    """Return a score of NumPy arrays, x (B, ...) and t (B,) of float32, as a function of JAX.

    It has no derivatives: samplers accept it, log-densities and posteriors raise InputError.
    """
    return _as_score(Functions(score))


@checked
def from_torch(score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Score:
    """Return a score of PyTorch tensors, x (B, ...) and t (B,) of float32, as a function of JAX.

    `score` is a function or a module; tensors are on the device of the module's first parameter,
    by default the CPU. Samplers, log-densities and posteriors need its first derivatives, which are
    those of `torch.func`. Second ones, such as gradients of log-densities, raise InputError, and so
    does a missing PyTorch. Callbacks of programs on a CPU can hang in JAX (its issue 25861); then
    set `jax_cpu_enable_async_dispatch` to False before JAX is used.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError("from_torch needs PyTorch: pip install torch.") from error

    parameters = getattr(score, "parameters", lambda: iter(()))
    device = next((each.device for each in parameters()), torch.device("cpu"))

    def tensors(arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
        return [torch.tensor(np.asarray(each), device=device) for each in arrays]

    def value(*arrays: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return score(*tensors(arrays)).cpu().numpy()

    def forward(*arrays: np.ndarray) -> np.ndarray:
        x, t, tangent = tensors(arrays)
        with torch.no_grad():
            product = torch.func.jvp(lambda x: score(x, t), (x,), (tangent,))[1]
        return product.cpu().numpy()

    def backward(*arrays: np.ndarray) -> np.ndarray:
        x, t, cotangent = tensors(arrays)
        with torch.enable_grad():
            result = score(x.requires_grad_(), t)
            return torch.autograd.grad(result, x, cotangent)[0].cpu().numpy()

    return _as_score(Functions(value, forward, backward))


def _as_score(functions: Functions) -> Score:
    def score(x: Array, t: Array) -> Array:
        return external.bind(x, t, functions=functions, kind="value")

    return score


# --- the primitive --------------------------------------------------------------------------------

external = Primitive("external_score")


def _on_host(*arrays: Array, functions: Functions, kind: str) -> np.ndarray:
    """Return what a function of the host makes of arrays, like the first one."""
    found = np.asarray(getattr(functions, kind)(*map(np.asarray, arrays)), arrays[0].dtype)
    if found.shape != arrays[0].shape:
        raise InputError(
            f"The score of x with shape {arrays[0].shape} has shape {found.shape}; it must be that "
            "of x."
        )
    return found


def _callback(*arrays: Array, **parameters: Any) -> Array:
    result = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
    return jax.pure_callback(lambda *given: _on_host(*given, **parameters), result, *arrays)


def _batch(arrays: Any, axes: Any, **parameters: Any) -> tuple[Array, int]:
    """Apply the function to one batch of all events."""
    (size,) = {x.shape[axis] for x, axis in zip(arrays, axes) if axis is not None}
    moved = [batching.bdim_at_front(x, axis, size) for x, axis in zip(arrays, axes)]
    merged = [x.reshape(-1, *x.shape[2:]) for x in moved]
    return external.bind(*merged, **parameters).reshape(moved[0].shape), 0


def _derivative(primals: Any, tangents: Any, *, functions: Functions, kind: str) -> Any:
    value = external.bind(*primals, functions=functions, kind=kind)
    x, t, *linear = tangents
    if type(t) is not ad.Zero:
        raise InputError("The derivative of an external score with respect to t is not available.")
    if linear and type(x) is not ad.Zero:
        raise InputError(NO_SECOND)
    if not linear and functions.forward is None:
        raise InputError(NO_DERIVATIVE)
    given = (*primals[:2], *(linear or [x]))
    kind = "forward" if kind == "value" else kind
    return value, external.bind(*given, functions=functions, kind=kind)


def _transpose(cotangent: Any, x: Any, t: Any, _: Any, *, functions: Functions, kind: str) -> Any:
    kind = {"forward": "backward", "backward": "forward"}[kind]
    if type(cotangent) is not ad.Zero:
        cotangent = external.bind(x, t, cotangent, functions=functions, kind=kind)
    return None, None, cotangent


# Without JAX around what a score raises, unless it is compiled.
external.def_impl(lambda *arrays, **parameters: jnp.asarray(_on_host(*arrays, **parameters)))
external.def_abstract_eval(lambda x, *_, **__: x.update(weak_type=False))
mlir.register_lowering(external, mlir.lower_fun(_callback, multiple_results=False))
batching.primitive_batchers[external] = _batch
ad.primitive_jvps[external] = _derivative
ad.primitive_transposes[external] = _transpose
