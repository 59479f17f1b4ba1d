"""Draw docs/architecture.svg and the table in docs/architecture.md from the imports of the code.

Run `python -m docs.make_architecture` after a change of the imports. tests/test_docs.py fails if
either is out of date.
"""

from __future__ import annotations

import itertools
import re
import statistics
from pathlib import Path

from tests.test_architecture import depth, imports

DOCS = Path(__file__).parent
PAGE = DOCS / "architecture.md"
DIAGRAM = DOCS / "architecture.svg"
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
OMITTED = {"benchmarks", "studies"}  # They import most modules; the program imports neither.
WIDTH, HEIGHT = 1.5, 0.42  # of a box, where layers are 1 apart
GAP = 0.3  # between neighbouring boxes, and around a line that passes between them


def modules() -> dict[str, set[str]]:
    """The top-level modules in the diagram, each with those that it imports."""
    return {name: found for name, found in imports().items() if name not in OMITTED}


def reduced(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The edges of the transitive reduction: imports that no longer path of imports implies."""

    def reachable(name: str) -> set[str]:
        return graph[name].union(*(reachable(other) for other in graph[name]))

    edges = []
    for name, imported in graph.items():
        implied: set[str] = set().union(*(reachable(other) for other in imported))
        edges += [(name, other) for other in imported - implied]
    return sorted(edges)


def layers(graph: dict[str, set[str]]) -> dict[int, list[str]]:
    """The modules at each depth, the deepest first."""
    found: dict[int, list[str]] = {}
    for name in sorted(graph, key=lambda name: (-depth(name), name)):
        found.setdefault(depth(name), []).append(name)
    return found


def routes(graph: dict[str, set[str]]) -> dict[tuple[str, str], list[str]]:
    """The points of each drawn edge: its ends, and a free position on each layer between them."""
    found = {}
    for name, other in reduced(graph):
        between = range(depth(name) - 1, depth(other), -1)
        found[name, other] = [name, *(f"{name}-{other}-{level}" for level in between), other]
    return found


def positions(graph: dict[str, set[str]]) -> dict[str, tuple[float, float]]:
    """The position of each box and of each point of an edge; y is the depth.

    Each layer is sorted repeatedly by the mean x of the neighbours, which avoids crossings.
    """
    rows = {level: list(row) for level, row in layers(graph).items()}
    neighbours: dict[str, list[str]] = {name: [] for name in graph}
    for points in routes(graph).values():
        top = depth(points[0])
        for i, point in enumerate(points[1:-1], 1):
            rows[top - i].append(point)
        for above, below in itertools.pairwise(points):
            neighbours.setdefault(above, []).append(below)
            neighbours.setdefault(below, []).append(above)
    x: dict[str, float] = {}
    for _ in range(40):
        for level in sorted(rows):
            means = {
                name: statistics.mean([x[n] for n in neighbours[name] if n in x] or [0.0])
                for name in rows[level]
            }
            rows[level].sort(key=lambda name: (means[name], name))
            x |= packed(rows[level], graph)
    return {name: (x[name], float(level)) for level, row in rows.items() for name in row}


def packed(row: list[str], graph: dict[str, set[str]]) -> dict[str, float]:
    """The x of each box or point of a layer, side by side and centred at 0."""
    widths = [GAP + (WIDTH if name in graph else 0.0) for name in row]
    ends = list(itertools.accumulate(widths))
    return {name: end - (width + ends[-1]) / 2 for name, width, end in zip(row, widths, ends)}


def table(graph: dict[str, set[str]]) -> str:
    """Markdown rows: depth, module, and the modules that it imports directly."""
    lines = ["| depth | module | imports |", "| --- | --- | --- |"]
    for level, row in layers(graph).items():
        for name in row:
            imported = ", ".join(f"`{other}`" for other in sorted(graph[name]))
            lines.append(f"| {level} | `{name}` | {imported} |")
    return "\n".join(lines)


def page(text: str, graph: dict[str, set[str]]) -> str:
    """The page with its generated part replaced."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table(graph)}\n{END}{after}"


def drawn_edges(svg: str) -> list[tuple[str, str]]:
    """The edges in an SVG file that `draw` wrote."""
    return sorted(tuple(pair.split("-to-")) for pair in re.findall(r'<g id="(\w+-to-\w+)"', svg))


def draw(graph: dict[str, set[str]], path: Path) -> None:
    """Write the diagram as SVG. Each line's id names its ends, for `drawn_edges`."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "architecture"}
    centres = positions(graph)
    columns = max(abs(x) for x, _ in centres.values()) + WIDTH / 2 + GAP
    rows = max(y for _, y in centres.values())
    figure = Figure(figsize=(2 * columns * 0.72, (rows + 0.2) * 0.72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-columns, columns), ylim=(0.4, rows + 0.6))
    axes.axis("off")
    for (name, other), points in routes(graph).items():
        x = [centres[point][0] for point in points for _ in range(2)]
        y = [centres[point][1] + half for point in points for half in (HEIGHT / 2, -HEIGHT / 2)]
        line = axes.plot(x, y, color="#9aa7b5", lw=1, solid_joinstyle="round")[0]
        line.set(gid=f"{name}-to-{other}", zorder=1)
    for name in graph:
        x, y = centres[name]
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        box = FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08")
        box.set(facecolor="#eef3f8", edgecolor="#54708c", zorder=2)
        axes.add_patch(box)
        label = f"{name}/" if (DOCS.parent / name).is_dir() else f"{name}.py"
        axes.text(x, y, label, ha="center", va="center", fontsize=9, family="sans-serif", zorder=3)
    figure.savefig(path, format=path.suffix[1:], metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    found = modules()
    draw(found, DIAGRAM)
    PAGE.write_text(page(PAGE.read_text(), found))
