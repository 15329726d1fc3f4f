"""Shared parts of ``clips data inspect`` and ``llava-bridge data inspect``: settings, sample selection and output."""

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
from clips.data.sampler import evenly
from clips.errors import UserError
from clips.ranges import NonNegative
from clips.safe_text import jinja_finalize, strip_control_chars

_THUMBNAIL = 320  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """How many samples an inspection reads and shows.

    Args:
        num_samples: number of samples to read, evenly spaced; 0 reads all.
        num_shown: number of samples to print, and to show with their images on the page.
        html_output: an HTML page to write.
    """

    num_samples: NonNegative = 2000
    num_shown: NonNegative = 3
    html_output: str | None = None

    def shown(self, indices: np.ndarray) -> set[int]:
        """Those of the read samples that are shown."""
        return set(indices[evenly(len(indices), self.num_shown)].tolist()) if self.num_shown else set()

    def thumbnails(self, images: Iterable[Image.Image]) -> list[str]:
        """The images of a shown sample for the page, if one is written."""
        return [thumbnail(image) for image in images] if self.html_output else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a sample's text: ``supervised`` if the loss includes it."""

    text: str
    supervised: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A sample on the page: its images as base64 JPEGs (`thumbnail`), and label, which may be empty → spans."""

    name: str
    thumbnails: list[str]
    texts: dict[str, list[Span]]


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
    counts, edges = np.histogram(np.clip(values, 0, last), bins=min(24, max(1, int(last))), range=(0, last))
    return [
        {"start": start, "end": end, "count": int(count), "height": count / counts.max()}
        for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True)
    ]


def report_inspection(
    config: InspectionConfig,
    path: str,
    *,
    lines: Sequence[str],
    examples: Sequence[Example],
    invalid: InvalidSamples,
    num_read: int,
    charts: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Print examples and the summary's lines; write a self-contained HTML page if ``config`` names one.

    ``charts``: title → values of a histogram on the page. Raises UserError if all samples are invalid.
    """
    from rich.console import Console
    from rich.text import Text

    for example in examples:
        text = Text(strip_control_chars(f"{example.name}\n"), style="dim")
        for label, spans in example.texts.items():
            text.append(f"{label}: " if label else "", style="dim")
            for span in spans:  # guillemets work without color
                content = strip_control_chars(span.text)
                shown = (f"«{content}»", "bold green") if span.supervised else (content, "default")
                text.append(*shown)
            text.append("\n")
        Console(highlight=False, soft_wrap=True).print(text)
    if any(span.supervised for example in examples for spans in example.texts.values() for span in spans):
        print("supervised text is between « and »\n")
    for line in lines:
        print(strip_control_chars(line))
    if num_read == invalid.count > 0:
        raise UserError(f"{path}: none of {num_read:,} samples can be used; the reasons are printed above")
    if config.html_output:
        import jinja2

        template = Path(__file__).with_name("inspect_page.html.jinja").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, finalize=jinja_finalize)
        page = environment.from_string(template).render(
            title=path,
            lines=lines,
            examples=examples,
            invalid=list(invalid.summary(20)),  # names for each reason
            charts={name: bars for name, values in (charts or {}).items() if (bars := histogram(values))},
        )
        atomic_write(Path(config.html_output), page)
        log_info(f"page: {config.html_output}")
