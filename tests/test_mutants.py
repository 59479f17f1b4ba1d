"""The tool that draws faults: which ones it draws, and which of them tests notice."""

from __future__ import annotations

import pytest

from tests import mutants


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a + b", "a, a - b"),
        ("x = a ** b", "a, a * b"),
        ("x = a <= b", "a < b"),
        ("x = a is not b", "a is b"),
        ("x = a and b", "a or b"),
        ("x = not a", "a"),
        ("x = True", "False"),
        ("x = 0", "1"),
        ("x = f(a, b, c=d)", "a, f(a, b), f(b, a, c=d)"),
        ("x = int(a)", ""),
        ("x = maximum(a, b)", "a"),
        ("x = f(a, strict=True)", "a"),
        ("x = b if a else c", "b if not a else c"),
        ("x += y", "pass"),
        ("f(*x)", "pass"),
        ("if a:\n    raise ValueError(f'{a + 1}')", "if not a:"),
        ("x: Literal[1] = y", ""),
        ("@f(1)\ndef g(x: a(1)) -> a(1):\n    '1 + 1'", ""),
        ("from a import b\nimport c\n__all__ = f('d')", ""),
    ],
)
def test_faults(source, expected, tmp_path):
    (tmp_path / "small.py").write_text(source)
    changes = [change for _, change, _ in mutants.draw(tmp_path, ["small"], 99, seed=0)]
    assert ", ".join(sorted(each.split("`")[3] for each in changes)) == expected


@pytest.mark.slow
def test_survivors(tmp_path):
    """The test notices that the minimum is missing; the order of its arguments has no effect."""
    module = "def clip(x):\n    return min(x, top)\n\ntop = float('3')\n"
    test = "import small\n\ndef test_clip():\n    assert small.clip(5) == 3\n"
    (tmp_path / "tests").mkdir()
    for name, text in {"small.py": module, "tests/test_other.py": test, "conftest.py": ""}.items():
        (tmp_path / name).write_text(text)
    drawn = list(mutants.draw(tmp_path, ["small"], 99, seed=0))
    assert len(drawn) == 2
    change = "small.py:2: `min(x, top)` -> `min(top, x)` in `return min(x, top)`"
    assert list(mutants.survivors(tmp_path, drawn, 60)) == [change]
    assert (tmp_path / "small.py").read_text() == module
