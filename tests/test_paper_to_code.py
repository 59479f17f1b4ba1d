"""docs/paper_to_code.md: no number is missing, names exist, and docstrings cite the same equations.

A number stands for the paper (arXiv:2011.13456), unless its sentence names another source. A
docstring may cite an equation if the page lists its function for it, or one of its class or module.
The first function of an equation, or the class or module of this function, must cite it.
"""

from __future__ import annotations

import ast
import functools
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path

from tests.test_architecture import sources

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper_to_code.md"
NUMBERS = {"Eq.": 50, "Algorithm": 5, "Table": 5, "Figure": 17}
"""The first heading of a table of the page: the largest number in the paper."""

QUOTED = re.compile(r"`([^`]+)`")
SENTENCE = re.compile(r"(?<=[.;])\s+(?=[A-Za-z])")
CITATION = re.compile(r"Eqs?\.\s(\(\d+\)(?:(?:,|\sand|\sor)\s\(\d+\))*)")
PAPER, OTHER = "arXiv:2011.13456", re.compile(r"arXiv:|EDM|et\sal\.")


def rows(text: str) -> Iterator[tuple[str, str, str, str]]:
    """The heading, the first cell, the code and the tests of all rows whose tables have both."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        cells = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in table.splitlines()]
        if cells[0][-2:] == ["code", "tests"]:
            yield from ((cells[0][0], each[0], *each[-2:]) for each in cells[2:])


def numbers_in(label: str) -> list[int]:
    """The numbers of a cell such as '(1), (3)', '(15)-(18)*' or '9, 14-17'."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", re.sub(r"[()]", "", label))
    return [n for first, last in ranges for n in range(int(first), int(last or first) + 1)]


def cited(node: ast.AST, name: str) -> Iterator[tuple[str, int]]:
    """The equations of the paper in docstrings: names of functions, classes or modules."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        yield from ((name, number) for number in cited_numbers(ast.get_docstring(node) or ""))
        for child in node.body:
            yield from cited(child, f"{name}.{getattr(child, 'name', '')}")


def cited_numbers(docstring: str) -> list[int]:
    found = []
    for sentence in SENTENCE.split(docstring):
        if PAPER in sentence or not OTHER.search(sentence):
            found += re.findall(r"\d+", " ".join(CITATION.findall(sentence)))
    return [int(each) for each in found]


@functools.cache
def citations() -> frozenset[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for path in sum(sources().values(), []):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found |= set(cited(ast.parse(path.read_text()), name))
    return frozenset(found)


def problems(text: str, cited: frozenset[tuple[str, int]]) -> Iterator[str]:
    """What is wrong with the page."""
    table, listed = [*rows(text)], {}
    for kind, last in NUMBERS.items():
        numbers = [n for name, label, *_ in table if name == kind for n in numbers_in(label)]
        for number in {*range(1, last + 1), *numbers}:
            if numbers.count(number) != (number <= last):
                yield f"{kind} {number} occurs {numbers.count(number)} times"
    for kind, label, code, tests in table:
        names = [] if code.startswith("-: ") else QUOTED.findall(code)
        yield from (f"{name} does not exist" for name in names if pydoc.locate(name) is None)
        for file, _, test in (each.partition("::") for each in QUOTED.findall(tests)):
            if not (ROOT / file).is_file() or f"def {test}(" not in (ROOT / file).read_text():
                yield f"{file}::{test} does not exist"
        if not (names and tests) and not code.startswith("-: "):
            yield f"{kind} {label} has no code, reason or test"
        if kind == "Eq.":
            listed |= dict.fromkeys(numbers_in(label), names)
    for name, number in cited:
        if not any(f"{each}.".startswith(f"{name}.") for each in listed.get(number, [])):
            yield f"{name} cites ({number}), whose row does not list it"
    for number, names in listed.items():
        citing = [name for name, other in cited if other == number]
        if names and not any(f"{names[0]}.".startswith(f"{name}.") for name in citing):
            yield f"{names[0]} does not cite ({number})"


def test_the_page():
    assert list(problems(PAGE.read_text(), citations())) == []
