"""Runtime checks of the jaxtyping annotations: `install` before the project's modules are imported.

Only annotations that state shapes, such as Float[Array, "b ..."], are checked. Others (`Array`,
`float`) are for readers and pyright: calls with a numpy array or an int in their place are valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beartype
import jaxtyping

ROOT = Path(__file__).parents[1]
SHAPED = re.compile(r"\b(Shaped|Num|Inexact|Float|Int|UInt|Integer|Real|Bool|Key|PRNGKey)\w*\[")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function in beartype, for those of its annotations that state shapes."""
    if not callable(function) or isinstance(function, type):
        return function
    shaped = {
        name: annotation
        for name, annotation in function.__annotations__.items()
        if SHAPED.search(annotation if isinstance(annotation, str) else repr(annotation))
    }
    if not shaped:
        return function
    function.__annotations__ = shaped
    return beartype.beartype(function)


def install() -> None:
    """Check the annotations of the modules that state shapes, when they are imported.

    Only of these: jaxtyping wraps every function of a module, which takes longer than most calls.
    """
    packages = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    paths = [*ROOT.glob("*.py"), *(path for folder in packages for path in folder.rglob("*.py"))]
    shaped = [path for path in paths if SHAPED.search(path.read_text())]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in shaped]
    jaxtyping.install_import_hook(names, f"{__name__}.check")
