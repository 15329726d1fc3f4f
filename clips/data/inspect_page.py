"""Shared parts of ``clips data inspect`` and ``llava-bridge data inspect``: sample selection and the HTML page."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clips.core.artifact import atomic_write, log_info
from clips.data.invalid_samples import InvalidSamples
from clips.safe_text import jinja_finalize

_THUMBNAIL = 320  # pixels
_BARS = 24
_NAMES_ON_PAGE = 20  # of invalid samples, for each reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a sample's text: ``supervised`` if the loss includes it."""

    text: str
    supervised: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A sample on the page.

    Args:
        name: of the sample.
        thumbnails: its images as base64 JPEGs, see `thumbnail`.
        texts: label, which may be empty → spans.
    """

    name: str
    thumbnails: list[str]
    texts: dict[str, list[Span]]


def evenly(count: int, num_selected: int) -> np.ndarray:
    """Indices of ``num_selected`` evenly spaced items of ``count``, from the first to the last; 0 selects all."""
    return np.linspace(0, count - 1, min(num_selected or count, count)).round().astype(int)


def thumbnail(image: Image.Image) -> str:
    """A small JPEG of ``image`` in base64."""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()


def histogram(values: Sequence[float]) -> list[dict[str, float]]:
    """Bars for a page: start, end, count, and the height relative to the highest bar."""
    if not values:
        return []
    last = float(np.quantile(values, 0.99)) + 1
    counts, edges = np.histogram(np.clip(values, 0, last), bins=min(_BARS, max(1, int(last))), range=(0, last))
    return [
        {"start": start, "end": end, "count": int(count), "height": count / counts.max()}
        for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True)
    ]


def write_page(
    output: str,
    *,
    title: str,
    lines: Iterable[str],
    examples: Sequence[Example],
    invalid: InvalidSamples,
    charts: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write a self-contained HTML page.

    Args:
        output: the file.
        title: title of the page.
        lines: the summary.
        examples: some samples.
        invalid: the invalid samples.
        charts: title → values of a histogram.
    """
    import jinja2

    template = Path(__file__).with_name("inspect_page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=jinja_finalize)
    page = environment.from_string(template).render(
        title=title,
        lines=list(lines),
        examples=examples,
        invalid=list(invalid.summary(_NAMES_ON_PAGE)),
        charts={name: bars for name, values in (charts or {}).items() if (bars := histogram(values))},
    )
    atomic_write(Path(output), page)
    log_info(f"page: {output}")
