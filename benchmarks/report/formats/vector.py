"""The page's figures as files of their own, SVG and PDF, in the page's light colours."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.figures import figures
from benchmarks.report.model import Report

_STYLE = Path(__file__).parents[1] / "templates" / "style.css"
_FONT = "DejaVu Sans"  # matplotlib brings it; it has the arrows and signs of our labels


def svg_figures(report: Report) -> dict[str, str | bytes]:
    """File name → SVG that stands alone."""
    return {f"{name}.svg": standing_alone(svg) for name, svg in figures(report).items()}


def pdf_figures(report: Report) -> dict[str, str | bytes]:
    """File name → PDF of one page, as large as the figure, its text still text."""
    return {f"{name}.pdf": as_pdf(standing_alone(svg)) for name, svg in figures(report).items()}


def standing_alone(svg: str) -> str:
    """A figure of the page as a file: its size and its font are said, CSS variables are the colours they stand for."""
    found = re.search(r'viewBox="\s*\S+\s+\S+\s+(\S+)\s+(\S+?)\s*"', svg)
    size = f' width="{found[1]}pt" height="{found[2]}pt"' if found else ""
    opening = '<svg xmlns="http://www.w3.org/2000/svg"' if "xmlns=" not in svg.partition(">")[0] else "<svg"
    text = svg.replace("<svg", f'{opening}{size} font-family="{_FONT}, sans-serif"', 1)
    return re.sub(r"var\((--[\w-]+)\)", lambda name: _colours().get(name[1], "currentColor"), text)


@functools.cache
def _colours() -> Mapping[str, str]:
    """The page's variables in its light colours, the first that its style gives them."""
    style = _STYLE.read_text(encoding="utf-8")
    return {name: value.strip() for name, value in reversed(re.findall(r"(--[\w-]+):\s*([^;}]+)", style))}


def as_pdf(svg: str) -> bytes:
    """An SVG as PDF."""
    from reportlab.graphics import renderPDF
    from svglib.svglib import svg2rlg

    _register_font()
    drawing: Any = svg2rlg(io.BytesIO(svg.encode()))
    return bytes(renderPDF.drawToString(drawing))


@functools.cache
def _register_font() -> None:
    import matplotlib
    from svglib.fonts import register_font

    register_font(_FONT, str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"))
