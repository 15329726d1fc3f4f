"""Draw the figures of docs/concepts.md: ``python scripts/docs/draw_concepts.py`` writes ``docs/concepts_*.svg``.

Each adapts to the reader's light or dark color scheme.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
STYLE = """
  :root { --ink: #1d2127; --soft: #5b626c; --line: #9aa1ab; --sheet: #fcfbf8; --box: #ffffff; --tint: #d5ebe9;
    --tool: #0b5f6b; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e8e5de; --soft: #a5a9b0; --line: #6b7280; --sheet: #15171a; --box: #1c1f23; --tint: #1f4448;
      --tool: #7cc7cf; }
  }
  text { font: 14px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: var(--ink); }
  .soft { fill: var(--soft); font-size: 12.5px; }
  .code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12.5px; }
  .middle { text-anchor: middle; } .strong { font-weight: 600; }
  .sheet { fill: var(--sheet); } .box { fill: var(--box); stroke: var(--line); stroke-width: 1.2; }
  .on { fill: var(--tint); stroke: var(--tool); stroke-width: 1.4; }
  .way { fill: none; stroke: var(--soft); stroke-width: 1.5; marker-end: url(#tip); } #tip path { fill: var(--soft); }
"""


class Figure:
    """An SVG, built shape by shape."""

    def __init__(self, width: int, height: int, title: str, about: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'aria-labelledby="title about">',
            f'<title id="title">{title}</title><desc id="about">{about}</desc>',
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
            f'<rect class="sheet" width="{width}" height="{height}" rx="8"/>',
        ]

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """Text at a point: its left end, or its center with the class ``middle``."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{html.escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, words: str = "", *, on: bool = False) -> None:
        """A box with centered text."""
        kind, corner = ("on" if on else "box"), min(6, width / 6)
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner:g}"/>'
        )
        if words:
            self.text(x + width / 2, y + height / 2 + 5, words, "middle")

    def way(self, *points: tuple[float, float]) -> None:
        """An arrow along points."""
        self.parts.append(f'<path class="way" d="M{"L".join(f"{x:g} {y:g}" for x, y in points)}"/>')

    def write(self, folder: Path, name: str) -> None:
        """Write ``concepts_<name>.svg``."""
        (folder / f"concepts_{name}.svg").write_text("\n".join([*self.parts, "</svg>", ""]), encoding="utf-8")


def positives(folder: Path) -> None:
    """Two similarity matrices, one for each text of an image."""
    figure = Figure(
        760, 290, "Several positives",
        "Similarities of four images to their web captions and to their partial captions. In each matrix the diagonal "
        "is positive and all other entries are negative; the loss is the mean of both.",
    )  # fmt: skip
    for left, texts in ((110, "web captions"), (450, "partial captions")):
        figure.text(left + 80, 34, texts, "middle strong")
        for row in range(4):
            figure.box(left - 46, 72 + 40 * row, 36, 36, f"P{row + 1}")
            figure.text(left + 20 + 40 * row, 60, f"T{row + 1}", "middle soft")
            for column in range(4):
                figure.box(
                    left + 2 + 40 * column, 72 + 40 * row, 36, 36, "+" if row == column else "", on=row == column
                )
        figure.text(left + 80, 258, "a separate softmax", "middle soft")
        figure.text(left + 80, 276, "over rows and over columns", "middle soft")
    figure.text(360, 160, "and", "middle soft")
    figure.text(690, 150, "loss:", "middle strong")
    figure.text(690, 170, "their mean", "middle")
    figure.write(folder, "positives")


def partial(folder: Path) -> None:
    """Sentences of a synthetic caption, one per epoch."""
    sentences = (
        "A small boat lies on a beach.",
        "Its bow faces the water.",
        "People walk behind it.",
        "The sky is clear.",
    )
    figure = Figure(
        760, 250, "Partial captions",
        "A synthetic caption of four sentences. In each epoch a random one of them is the positive; the others are "
        "not used.",
    )  # fmt: skip
    figure.text(24, 40, "synthetic caption", "strong")
    for number, words in enumerate(sentences):
        figure.box(24, 56 + 44 * number, 250, 34, words)
    for epoch, drawn in enumerate((2, 0, 3)):
        left = 330 + 140 * epoch
        figure.text(left + 60, 40, f"epoch {epoch + 1}", "middle strong")
        for number in range(len(sentences)):
            figure.box(left, 56 + 44 * number, 120, 34, "positive" if number == drawn else "", on=number == drawn)
    figure.way((280, 140), (322, 140))
    figure.write(folder, "partial")


def captioner(folder: Path) -> None:
    """The inputs and predictions of the captioner."""
    words = ("A", "small", "boat", "lies", "on", "…")
    figure = Figure(
        760, 330, "The captioner",
        "The image tower's tokens, the text tower's tokens of the web caption and learnable tokens enter the "
        "captioner; each learnable token predicts one word of the whole synthetic caption, without knowing the others.",
    )  # fmt: skip
    tokens(figure, 30, 5, "image tokens")
    tokens(figure, 220, 4, "web caption's tokens")
    tokens(figure, 410, len(words), "learnable tokens", on=True)
    figure.text(30, 318, "from the image tower", "soft")
    figure.text(220, 318, "from the text tower", "soft")
    figure.box(30, 148, 410 + 46 * len(words) - 40, 62, "captioner: a decoder, removed after training")
    for x in (30 + 34 * 2.5, 220 + 34 * 2, 410 + 46 * len(words) / 2 - 4):
        figure.way((x, 246), (x, 216))
    figure.text(550, 40, "the whole synthetic caption", "middle strong")
    figure.text(550, 60, "every word independently", "middle soft")
    for number, word in enumerate(words):
        left = 410 + 46 * number
        figure.way((left + 19, 142), (left + 19, 112))
        figure.box(left - 3, 74, 44, 32, word, on=True)
    figure.write(folder, "captioner")


def tokens(figure: Figure, left: float, count: int, words: str, *, on: bool = False) -> None:
    """A row of tokens with text below."""
    step = 46 if on else 34
    for number in range(count):
        figure.box(left + step * number, 250, step - 8, 26, on=on)
    figure.text(left, 298, words, "strong")


def fingerprint(folder: Path) -> None:
    """The entries of a protocol that the fingerprint hashes."""
    figure = Figure(
        760, 300, "Protocol and fingerprint",
        "A result has a score and a protocol. Entries that begin with input_ come from the model's directory. All "
        "others are hashed; rows with the same hash are ranked together.",
    )  # fmt: skip
    entries(figure, 30, "the model's own", ("input_resolution: 224", "input_resize: squash"), on=False, top=178)
    hashed = ("data_hash: 3cf7…", "prompt: none", "precision: float32", "scorer: 1.2.0")
    entries(figure, 30, "the harness's", hashed, on=True, top=26)
    figure.way((250, 90), (330, 90))
    figure.box(338, 64, 150, 52, "fingerprint", on=True)
    figure.text(413, 136, "SHA-256", "middle soft")
    figure.way((494, 80), (566, 56))
    figure.way((494, 100), (566, 126))
    figure.text(574, 54, "the same: ranked and", "")
    figure.text(574, 72, "tested together", "")
    figure.text(574, 124, "different: shown,", "")
    figure.text(574, 142, "never compared", "")
    figure.way((250, 226), (566, 226))
    figure.text(574, 222, "differs: ranked together,", "")
    figure.text(574, 240, "with a note", "")
    figure.write(folder, "fingerprint")


def entries(figure: Figure, left: float, title: str, lines: Sequence[str], *, on: bool, top: float) -> None:
    """A box with entries of a protocol."""
    figure.box(left, top, 214, 34 + 22 * len(lines), on=on)
    figure.text(left + 14, top + 24, title, "strong")
    for number, line in enumerate(lines):
        figure.text(left + 14, top + 46 + 22 * number, line, "code")


def main(folder: Path = DOCS) -> None:
    """Write all figures."""
    for draw in (positives, partial, captioner, fingerprint):
        draw(folder)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
