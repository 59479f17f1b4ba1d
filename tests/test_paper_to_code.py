"""docs/paper_to_code.md: no number is missing, names exist, and docstrings cite the same equations.

A number stands for the paper (arXiv:2011.13456), unless its sentence names another source. A
docstring may cite an equation if the page lists its function for it, or one of its class or module.
The first function of an equation, or the class or module of this function, must cite it.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_architecture import sources

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper_to_code.md"
NUMBERS = {"Eq.": 50, "Algorithm": 5, "Table": 5, "Figure": 17}
"""The first heading of a table of the page: the largest number in the paper."""

QUOTED = re.compile(r"`([^`]+)`")
SENTENCE = re.compile(r"(?<=[.;])\s+(?=[A-Za-z])")
CITATION = re.compile(r"Eqs?\.\s(\(\d+\)(?:(?:,|\sand|\sor)\s\(\d+\))*)")
PAPER, OTHER = "arXiv:2011.13456", re.compile(r"arXiv:|EDM|et\sal\.")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      kind: the heading of the first column.
      label: the first cell.
      code: `module.name` of all functions; "-: reason" if there is none.
      tests: `tests/file.py::name` of all tests.
    """

    kind: str
    label: str
    code: str
    tests: str

    @property
    def number(self) -> int:
        return int(re.sub(r"\D", "", self.label))

    @property
    def names(self) -> list[str]:
        return [] if self.code.startswith("-: ") else QUOTED.findall(self.code)

    def __str__(self) -> str:
        return f"{self.kind} {self.label}"


def rows(text: str) -> Iterator[Row]:
    """The rows of all tables whose last columns are `code` and `tests`."""
    kind = ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[-2:] == ["code", "tests"]:
            kind = cells[0]
        elif cells and kind and not set(cells[0]) <= {"-"}:
            yield Row(kind, cells[0], *cells[-2:])
        elif not cells:
            kind = ""


# --- the code -------------------------------------------------------------------------------------


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def defined(body: list[ast.stmt], name: str) -> ast.stmt | None:
    """The function, class or assignment of this name among statements."""
    for node in body:
        names = [getattr(node, "name", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [getattr(target, "id", None) for target in targets]
        if name in names:
            return node
    return None


@functools.cache
def exists(name: str) -> bool:
    """Whether `module.name` or `module.class.name` is defined in the file of the module."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        path = ROOT.joinpath(*parts[:count])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path.is_file():
            node = tree(path)
            for part in parts[count:]:
                node = defined(getattr(node, "body", []), part)
            return node is not None
    return False


@functools.cache
def citations() -> frozenset[tuple[str, int]]:
    """The equations of the paper that docstrings cite: names of functions, classes or modules."""
    found = set()
    for path in sum(sources().values(), []):
        if CITATION.search(path.read_text()):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found |= set(_cited(tree(path), ".".join(parts).removesuffix(".__init__")))
    return frozenset(found)


def _cited(node: ast.AST, name: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        for number in cited_numbers(ast.get_docstring(node) or ""):
            yield name, number
        for child in node.body:
            yield from _cited(child, f"{name}.{getattr(child, 'name', '')}")


def cited_numbers(docstring: str) -> list[int]:
    """The equations of the paper in a docstring."""
    found = []
    for sentence in SENTENCE.split(docstring):
        if PAPER in sentence or not OTHER.search(sentence):
            for group in CITATION.findall(sentence):
                found += map(int, re.findall(r"\d+", group))
    return found


# --- the page -------------------------------------------------------------------------------------


def problems(text: str, cited: frozenset[tuple[str, int]] | None = None) -> list[str]:
    """What is wrong with the page."""
    found, table = [], list(rows(text))
    for kind, last in NUMBERS.items():
        numbers = [row.number for row in table if row.kind == kind]
        for number in range(1, max(last, *numbers, 0) + 1):
            expected = 1 if number <= last else 0
            if numbers.count(number) != expected:
                found.append(f"{kind} {number} occurs {numbers.count(number)} times")
    for row in table:
        found += [f"{row}: {name} does not exist" for name in row.names if not exists(name)]
        for test in QUOTED.findall(row.tests):
            file, _, name = test.partition("::")
            path = ROOT / file
            if not path.is_file() or defined(tree(path).body, name) is None:
                found.append(f"{row}: {test} does not exist")
        if not row.names and not row.code.startswith("-: "):
            found.append(f"{row}: neither code nor a reason")
        if row.names and not row.tests:
            found.append(f"{row}: no test")
    return [*found, *_disagreements(table, citations() if cited is None else cited)]


def _disagreements(table: list[Row], cited: frozenset[tuple[str, int]]) -> Iterator[str]:
    """Citations that the page does not list, and first functions that do not cite."""
    listed = {row.number: row.names for row in table if row.kind == "Eq."}
    for name, number in sorted(cited):
        if not any(f"{each}.".startswith(f"{name}.") for each in listed.get(number, [])):
            yield f"the docstring of {name} cites Eq. ({number}), whose row does not list it"
    for number, names in listed.items():
        if names and not any(
            number == other and f"{names[0]}.".startswith(f"{name}.") for name, other in cited
        ):
            yield f"the docstring of {names[0]} does not cite Eq. ({number})"


def test_the_page():
    assert problems(PAGE.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("| (36) |", "| (35) |", "Eq. 36 occurs 0 times"),
        ("| (36) |", "| (35) |", "Eq. 35 occurs 2 times"),
        ("| (50) |", "| (51) |", "Eq. 51 occurs 1 times"),
        ("\n| 5 | corrector for VP", "\n| 4 | corrector for VP", "Algorithm 5 occurs 0 times"),
        ("\n| 17 | colorization", "\n| 16 | colorization", "Figure 17 occurs 0 times"),
        ("`sde_lib.VESDE.sigmas`", "`sde_lib.VESDE.sigma`", "sde_lib.VESDE.sigma does not exist"),
        ("`likelihood.elbo`", "`likelihoods.elbo`", "likelihoods.elbo does not exist"),
        ("::test_probes`", "::test_probe`", "test_likelihood.py::test_probe does not exist"),
        ("test_likelihood.py::test_probes`", "test_none.py::a`", "test_none.py::a does not exist"),
        ("| `tests/test_likelihood.py::test_probes` |", "| |", "Eq. (40): no test"),
        ("-: a drawing | |\n| 2", " | |\n| 2", "Figure 1: neither code nor a reason"),
        (
            "`likelihood.elbo` |",
            "|",
            "the docstring of likelihood.elbo cites Eq. (6), whose row does not list it",
        ),
        (
            "| `likelihood.log_likelihood` | `tests/test_likelihood.py::test_mixtures`",
            "| `likelihood.elbo` | `tests/test_likelihood.py::test_mixtures`",
            "the docstring of likelihood.elbo does not cite Eq. (39)",
        ),
    ],
)
def test_wrong_pages(old, new, problem):
    text = PAGE.read_text()
    assert text.count(old) == 1
    assert any(each.endswith(problem) for each in problems(text.replace(old, new)))


def test_wrong_docstrings():
    text = PAGE.read_text()
    wrong = (citations() - {("sampling.euler_maruyama", 6)}) | {("sampling.euler_maruyama", 7)}
    message = "the docstring of sampling.euler_maruyama cites Eq. (7), whose row does not list it"
    assert problems(text, frozenset(wrong)) == [message]
    missing = citations() - {("likelihood.log_likelihood", 39)}
    message = "the docstring of likelihood.log_likelihood does not cite Eq. (39)"
    assert problems(text, frozenset(missing)) == [message]


@pytest.mark.parametrize(
    ("docstring", "numbers"),
    [
        ("Solve Eq. (13), or Eqs. (6), (7) and\n(8).", [13, 6, 7, 8]),
        ("The weights give SMLD (Eqs. (1), (3)); others are from arXiv:2101.09258.", [1, 3]),
        ("By Bayes' rule (Song et al. 2021, arXiv:2011.13456, Eq. (14)).", [14]),
        ("Levels of EDM, Eq. (5). The flow is Eq. (13).", [13]),
        ("Guidance (Song et al. 2023, Eq. (7)), for Eq. (50).", []),
        ("See Nichol & Dhariwal 2021 (arXiv:2102.09672), Eq. (17).", []),
    ],
)
def test_citations_of_the_paper(docstring, numbers):
    assert cited_numbers(docstring) == numbers
