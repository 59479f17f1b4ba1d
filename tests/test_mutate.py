"""The list of mutations fits the code, and the tool tells wrong code from right."""

import ast
import json
import subprocess
import sys

import pytest

from tests import mutate
from tests.mutate import Mutation

MUTATIONS = mutate.read()


@pytest.mark.parametrize("file", sorted({mutation.file for mutation in MUTATIONS}))
def test_entries_fit_the_code(file):
    """Each mutated file is valid Python, and each test exists."""
    for mutation in MUTATIONS:
        if mutation.file == file:
            ast.parse(mutate.mutated(mutation, mutate.ROOT))
            assert mutation.tests, mutation
            options = [i for i, test in enumerate(mutation.tests) if test == "-k"]
            for i, test in enumerate(mutation.tests):
                if i in options or i - 1 in options:  # "-k" and its expression.
                    continue
                path, _, name = test.partition("::")
                source = (mutate.ROOT / path).read_text()
                assert not name or f"def {name.partition('[')[0]}(" in source, test


def test_entries_are_unique():
    assert len({(each.file, each.old, each.new) for each in MUTATIONS}) == len(MUTATIONS)


def change(new: str, old: str = "2 * x") -> Mutation:
    return Mutation("double.py", old, new, ("tests/test_double.py::test_double",))


@pytest.fixture
def checkout(tmp_path):
    """A checkout of the tool, one module, its test, and an ignored file."""
    files = {
        "double.py": "def double(x):\n    return 2 * x\n",
        "tests/__init__.py": "",
        "tests/test_double.py": "import pathlib\nfrom double import double\n\n"
        "def test_double():\n    assert double(2) == 4\n"
        "    assert not pathlib.Path('ignored').exists()\n",
        "tests/mutate.py": (mutate.ROOT / "tests" / "mutate.py").read_text(),
        ".gitignore": "ignored\n",
        "ignored": "",
    }
    (tmp_path / "tests").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def run(checkout, *mutations: Mutation) -> subprocess.CompletedProcess:
    """Run the tool with these mutations; libraries that these tests do not need are left out."""
    entries = [mutation._asdict() for mutation in mutations]
    (checkout / "tests" / "mutations.json").write_text(json.dumps(entries))
    program = "from tests import mutate; mutate.LIBRARIES = ('pytest',); mutate.main()"
    command = [sys.executable, "-B", "-c", program]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def test_verdicts(checkout):
    """Only the change that the test cannot see survives; the checkout stays as it is."""
    before = {path: path.read_bytes() for path in checkout.glob("*.py")}
    ended = run(checkout, change("3 * x"), change("x + 2"), change("undefined"))
    lines = [line.split()[0] for line in ended.stdout.splitlines()[1:]]
    assert lines == ["caught", "SURVIVED", "caught", "2"], ended
    assert "Error: not caught:\n  double.py: '2 * x' -> 'x + 2'\n" in ended.stderr
    assert ended.returncode == 1
    assert before == {path: path.read_bytes() for path in checkout.glob("*.py")}


def test_failures_without_a_mutation_are_errors(checkout):
    (checkout / "double.py").write_text("def double(x):\n    return 2 * x + 1\n")
    ended = run(checkout, change("3 * x"))
    assert "without mutations the tests fail too (pytest's exit code is 1)" in ended.stderr
    assert "assert 5 == 4" in ended.stdout
    assert ended.returncode == 1


@pytest.mark.parametrize(
    ("mutation", "message"),
    [
        (change("3 * x", old="5 * x"), "double.py contains the following text 0 times"),
        (change("y", old="x"), "double.py contains the following text 2 times"),
        (change("2 * x"), "changes nothing"),
    ],
)
def test_stale_entries(checkout, mutation, message):
    with pytest.raises(mutate.StaleError, match=message):
        mutate.mutated(mutation, checkout)


def test_shares_of_the_list():
    shares = [mutate.select(MUTATIONS, "", f"{i}/3") for i in (1, 2, 3)]
    assert sorted(sum(shares, [])) == sorted(MUTATIONS)
    assert {each.file for each in mutate.select(MUTATIONS, "datasets", "1/1")} == {"datasets.py"}
