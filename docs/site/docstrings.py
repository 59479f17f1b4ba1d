"""Extension of Sphinx: docstrings, signatures and values of this project in the reference.

In our docstrings only backticks, indented paragraphs (text shown as it is) and the sections of
Google's style (read by `sphinx.ext.napoleon`) have a meaning. In reStructuredText, which Sphinx
reads, `*` and `|` have one, too.
"""

from __future__ import annotations

import importlib
import operator
import re
from typing import Any

from flax import nnx
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import inspect

LONGEST_VALUE = 60  # characters
CODE_OR_MARKUP = re.compile(r"(`[^`]+`)|([*|])")
ARRAY = re.compile(r"~?\bjax(?:lib|\.jaxlib)\._jax\.Array\b")
ALIAS = re.compile(r"TypeAliasForwardRef\('(~[\w.]+)'\)")
OBJECT = re.compile(r"<(?:class|function) '?([\w.]+|[\w.]*<lambda>)'?>")


def to_rst(docstring: str) -> str:
    """Convert a docstring without its common indentation to reStructuredText."""
    paragraphs = docstring.split("\n\n")
    for i, text in enumerate(paragraphs):
        if all(line.startswith("  ") for line in text.splitlines()):
            paragraphs[i] = f"::\n\n{text}"
        elif text.startswith("Create new instance of "):  # The __new__ of each NamedTuple.
            paragraphs[i] = ""
        else:
            paragraphs[i] = CODE_OR_MARKUP.sub(lambda found: found[1] or f"\\{found[2]}", text)
    return "\n\n".join(paragraphs)


def convert(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring, before napoleon reads them."""
    lines[:] = to_rst("\n".join(lines)).splitlines()
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # A comment, or else napoleon takes text before a colon for a type.


def sign(
    app: Sphinx, what: str, name: str, value: Any, options: Any, arguments: str, returned: str
) -> tuple[str, str]:
    """Return the arguments and the result with arrays as `Array`, and objects by their names."""
    if isinstance(value, type) and issubclass(value, nnx.Module):  # Else those of its metaclass.
        aliases = app.config.autodoc_type_aliases
        found = inspect.signature(value.__init__, bound_method=True, type_aliases=aliases)
        arguments = inspect.stringify_signature(
            found, show_return_annotation=False, unqualified_typehints=True
        )
    if getattr(value, "_is_protocol", False):  # It cannot be constructed.
        arguments = ""
    return arguments and _short(arguments), returned and _short(returned)


def _short(signature: str) -> str:
    return OBJECT.sub(r"\1", ALIAS.sub(r"\1", ARRAY.sub("Array", signature)))


def skip(app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Omit the fields of named tuples, which the docstring of the class describes."""
    return True if type(value).__name__ == "_tuplegetter" else None


def drop_long_value(app: Sphinx, domain: str, kind: str, content: addnodes.desc_content) -> None:
    """Omit the value of a constant such as a table of functions."""
    for node in list(content.parent.findall(addnodes.desc_annotation)):
        if kind == "data" and len(node.astext()) > LONGEST_VALUE and node.astext()[:3] == " = ":
            node.parent.remove(node)


def module_of(app: Sphinx, module: str, name: str) -> str | None:
    """Return the module of an alias such as `tuple[int, int]`, whose own module is builtins."""
    value = operator.attrgetter(name)(importlib.import_module(module))
    return module if getattr(value, "__module__", "") == "builtins" else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", convert, priority=400)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
    app.connect("viewcode-follow-imported", module_of)
    app.connect("object-description-transform", drop_long_value)
    return {"parallel_read_safe": True}
