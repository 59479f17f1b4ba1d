"""Which generated blocks of docs/ are older than their code.

python -m studies

Prints a line for each block that states no commit, or whose study or what it imports has changed
since the stated commit; comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.tables import block
from studies import common


def outdated(docs: Path) -> Iterator[str]:
    """Yield a line for each block of the pages in a folder that is not known to be current."""
    for page in sorted(docs.glob("*.md")):
        text = page.read_text()
        for name in re.findall("<!-- (.+): begin -->", text):
            words = r"python -m (studies\.\w+).*?\bcommits? (\w+)"
            found = re.search(words, block(text, name), re.S)
            if not found:
                yield f"{page.name}, {name}: no commit"
            elif changed := list(_changed(*found.groups())):
                count = f"{len(changed)} files have changed since {found[2]}"
                yield f"{page.name}, {name}: {count}: {', '.join(changed[:8])}"


def _changed(module: str, commit: str) -> Iterator[str]:
    """Yield the files with the code of a module whose code differs from that of a commit."""
    for path, tree in common.sources(module).values():
        name = path.relative_to(common.ROOT).as_posix()
        words = ["git", "-C", str(common.ROOT), "show", f"{commit}:{name}"]
        old = subprocess.run(words, capture_output=True, text=True).stdout
        if ast.dump(common.without_text(old)) != ast.dump(tree):
            yield name


if __name__ == "__main__":
    print("\n".join(outdated(common.ROOT / "docs")) or "All blocks are current.")
