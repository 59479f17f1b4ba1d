"""The README's table of rooms: all are in it, and no import runs upward."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (\d) \| ([^|]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
FLOORS = {
    room.removesuffix(".py").rstrip("/"): int(floor) for floor, rooms in ROWS for room in re.findall("`(.+?)`", rooms)
}
FLOORS["configs"] = 0


def modules():
    """Our modules with their rooms."""
    rooms = {path: path.stem for path in ROOT.glob("*.py")}
    return rooms | {path: folder for folder in ("models", "readers") for path in (ROOT / folder).glob("*.py")}


def test_every_module_has_a_room():
    assert set(modules().values()) == FLOORS.keys() - {"configs"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_runs_upward(path):
    room, imported = modules()[path], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    above = {other for other in imported & FLOORS.keys() if FLOORS[other] > FLOORS[room]}
    assert not above
