"""Draw the subpackages of the three packages and their imports, as docs/rooms.svg.

    python scripts/draw_rooms.py            write the drawing
    python scripts/draw_rooms.py --check    exit status 1 if the drawing is outdated

The description of a subpackage is the first line of its ``__init__.py``. Modules outside subpackages are in two more
boxes: those that subpackages import, and those that import them; a module between subpackages has its own box. An arrow
is an import, at the top of a file or in a function; arrows that follow from two others are omitted.
"""

from __future__ import annotations

import ast
import html
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
DRAWING = ROOT / "docs" / "rooms.svg"
PACKAGES = {"benchmarks": "evaluates and compares", "llava_bridge": "builds LLaVAs", "clips": "trains encoders"}
BELOW, ABOVE = "shared modules", "command modules"
WIDTH, BOX, GAP, ROW, MARGIN = 1000, 172, 14, 104, 20
STYLE = """
text { font: 11px system-ui, sans-serif; fill: #333 } .name { font-weight: 600; font-size: 13px; fill: #111 }
.package { font-weight: 600; font-size: 15px; fill: #111 } .box { fill: #fff; stroke: #8a8f98 }
.band { fill: #f3f4f6 } .files { stroke-dasharray: 4 3 } .arrow { fill: none; stroke: #7a8190 }
.head { fill: #7a8190 }
@media (prefers-color-scheme: dark) {
  text { fill: #c9ccd3 } .name, .package { fill: #f0f1f4 } .box { fill: #1d2026; stroke: #6c7380 }
  .band { fill: #14161a } .arrow { stroke: #8d95a5 } .head { fill: #8d95a5 }
}
"""


def main() -> int:
    """Write or check the drawing."""
    drawn = draw({package: rooms(package) for package in PACKAGES})
    if "--check" in sys.argv[1:]:
        same = DRAWING.is_file() and DRAWING.read_text(encoding="utf-8") == drawn
        print("docs/rooms.svg is up to date" if same else "docs/rooms.svg: run scripts/draw_rooms.py")
        return 0 if same else 1
    DRAWING.write_text(drawn, encoding="utf-8")
    return 0


def rooms(package: str) -> nx.DiGraph:
    """The subpackages of a package and their imports."""
    folder = ROOT / package
    files = nx.DiGraph()
    files.add_nodes_from(path for path in folder.rglob("*.py") if path.stat().st_size)
    files.add_edges_from([(path, target) for path in files for target in _imports(path, package) if target in files])
    home = {path: _room(path, folder) for path in files}
    graph = nx.DiGraph()
    graph.add_nodes_from(sorted({name for name in home.values() if name}))
    place = {path: name or _box_outside(path, files, home) for path, name in home.items()}
    graph.add_edges_from((place[one], place[other]) for one, other in files.edges if place[one] != place[other])
    for name in graph:
        graph.nodes[name]["description"] = _description(folder, name, place)
    return graph


def _box_outside(path: Path, files: nx.DiGraph, home: dict[Path, str]) -> str:
    """The box of a module outside subpackages: below or above them, or its own box between them."""
    if not any(home[user] for user in nx.ancestors(files, path)):
        return ABOVE
    return f"{path.stem}.py" if any(home[used] for used in nx.descendants(files, path)) else BELOW


def _room(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


def _description(folder: Path, name: str, place: dict[Path, str]) -> str:
    if name in (BELOW, ABOVE):
        return ", ".join(sorted(path.stem for path, box in place.items() if box == name and path.stem[:2] != "__"))
    file = folder / name if name.endswith(".py") else folder / name / "__init__.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def _imports(path: Path, package: str) -> set[Path]:
    """The files of the same package that a file imports, except for type checking."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            base = ROOT.joinpath(*name.split("."))
            files = [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()]
            if name.startswith(f"{package}."):
                found.update(files)
    return found


def draw(packages: dict[str, nx.DiGraph]) -> str:
    """The drawing as SVG: a band for each package, importing subpackages above imported ones."""
    top, bands = MARGIN, []
    for number, (package, graph) in enumerate(packages.items()):
        rows = _rows(graph)
        height = 34 + len(rows) * ROW
        bands.append(f'<g transform="translate({MARGIN},{top})">{"".join(_band(package, graph, rows, height))}</g>')
        top += height + 24
        if number + 1 < len(packages):
            bands.append(_arrow(WIDTH / 2, top - 24, WIDTH / 2, top))
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 8 4 0 8z"/></marker></defs>'
    )
    label = "The subpackages of the three packages; arrows go from a subpackage to one that it imports."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img" aria-label="{label}">'
        f"<title>{label}</title><style>{STYLE}</style>{marker}\n" + "\n".join(bands) + "\n</svg>\n"
    )


def _rows(graph: nx.DiGraph) -> list[list[str]]:
    """Subpackages in rows: none imports one of its own row or of a row above, except in a cycle."""
    whole = nx.condensation(graph)
    per_row = (WIDTH - 2 * MARGIN) // (BOX + GAP)
    rows = []
    for nodes in nx.topological_generations(whole):
        names = sorted(name for node in nodes for name in whole.nodes[node]["members"])
        rows += [names[start : start + per_row] for start in range(0, len(names), per_row)]
    return rows


def _band(package: str, graph: nx.DiGraph, rows: list[list[str]], height: int) -> Iterator[str]:
    inner = WIDTH - 2 * MARGIN
    yield f'<rect class="band" width="{inner}" height="{height}" rx="8"/>'
    yield f'<text class="package" x="14" y="24">{package}/ — {PACKAGES[package]}</text>'
    at: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        left = (inner - len(row) * (BOX + GAP) + GAP) / 2
        at |= {name: (left + place * (BOX + GAP), 40 + number * ROW) for place, name in enumerate(row)}
    whole = nx.condensation(graph)
    lesser = nx.transitive_reduction(whole)
    for here, there in sorted(
        (min(whole.nodes[a]["members"]), min(whole.nodes[b]["members"])) for a, b in lesser.edges
    ):
        (x, y), (to_x, to_y) = at[here], at[there]
        yield _arrow(x + BOX / 2, y + ROW - 38, to_x + BOX / 2, to_y - 1)
    for name, (x, y) in at.items():
        kind = "box files" if name in (BELOW, ABOVE) else "box"
        yield f'<rect class="{kind}" x="{x}" y="{y}" width="{BOX}" height="{ROW - 38}" rx="5"/>'
        yield f'<text class="name" x="{x + 9}" y="{y + 17}">{html.escape(name)}</text>'
        lines = textwrap.wrap(graph.nodes[name]["description"].replace("``", ""), 27, max_lines=3, placeholder=" …")
        for line, text in enumerate(lines):
            yield f'<text x="{x + 9}" y="{y + 32 + 13 * line}">{html.escape(text)}</text>'


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    bend = (to_y - y) / 2
    path = f"M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"
    return f'<path class="arrow" d="{path}" marker-end="url(#head)"/>'


if __name__ == "__main__":
    sys.exit(main())
