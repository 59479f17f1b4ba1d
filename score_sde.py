"""Score models in Python: samples, log-densities and posteriors of any score.

    import score_sde as ss

    model = ss.load("digits_vp")  # of zoo/, or a workdir that main.py trained
    x = model.sample(16, seed=0)
    logp, error = model.log_prob(x, return_error=True)
    blur = ss.operators.blur(model.event_shape, 1.0)
    y = blur.forward(x[:1])
    restored = model.posterior(y, blur, noise=0.05, method="moment_matching").sample(16)

    prior = ss.Prior(score, ss.VPSDE(), shape=(32, 32))  # any function score(x, t)

docs/python.md describes every call.
"""

import importlib.abc
import importlib.metadata
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import InputError, NotFiniteError, start_command

if Path(*sys.argv[:1]).stem == "score-sde":  # The command, which imports its package first.
    start_command()  # Before the other imports.

if TYPE_CHECKING:
    from api import operators
    from api.calibration import Calibration
    from api.callbacks import from_numpy, from_torch
    from api.posterior import Posterior
    from api.prior import Prior
    from api.trained import TrainedModel
    from loading import load
    from sde_lib import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE
    from training.arrays import train

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "Calibration",
    "CosineSDE",
    "InputError",
    "NotFiniteError",
    "Posterior",
    "Prior",
    "RectifiedFlow",
    "SubVPSDE",
    "TrainedModel",
    "from_numpy",
    "from_torch",
    "load",
    "operators",
    "train",
]


class _Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes `score_sde.NAME` the module NAME of a clone, as it is in the installed package."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.startswith("score_sde.") else None

    def create_module(self, spec: ModuleSpec) -> Any:
        module = importlib.import_module(spec.name.removeprefix("score_sde."))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        module.__spec__ = module.__spec__.loader_state  # The import has replaced it.


if "__path__" not in globals():
    __path__: list[str] = []
    sys.meta_path.insert(0, _Modules())


def _version() -> str:
    """Return the version: that of the changelog of this clone, or else of the installed package."""
    changelog = Path(__file__).with_name("CHANGELOG.md")
    if changelog.is_file():
        found = re.search(r"^## (\d\S*)", changelog.read_text("utf-8"), re.MULTILINE)
        return found[1] if found else "unknown"
    return importlib.metadata.version("score-sde")


__version__ = _version()


def __getattr__(name: str) -> Any:
    """Import the modules of the API when a name is first used (PEP 562).

    That takes a second, which the command of an installed package spends only for valid flags.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import loading
    import sde_lib
    from api import calibration, callbacks, operators, posterior, prior, trained
    from training import arrays

    if name == "operators":
        return operators
    modules = (calibration, callbacks, posterior, prior, trained, loading, arrays, sde_lib)
    return next(vars(module)[name] for module in modules if name in vars(module))


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
