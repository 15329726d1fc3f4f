"""Shared by ``clips data inspect`` and ``llava-bridge data inspect``: settings, the choice of samples, the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from clips.errors import UserError
from clips.loader.invalid_samples import InvalidSamples
from clips.loader.sampler import evenly
from clips.ranges import NonNegative
from clips.safe_text import strip_control_chars


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """How many samples an inspection reads and shows.

    Args:
        num_samples: number of samples to read, evenly spaced; 0 reads all.
        num_shown: number of samples to print.
    """

    num_samples: NonNegative = 2000
    num_shown: NonNegative = 3

    def shown(self, indices: np.ndarray) -> set[int]:
        """Those of the read samples that are shown."""
        return set(indices[evenly(len(indices), self.num_shown)].tolist()) if self.num_shown else set()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a sample's text: ``supervised`` if the loss includes it."""

    text: str
    supervised: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A shown sample: label, which may be empty → spans."""

    name: str
    texts: dict[str, list[Span]]


def report_inspection(
    path: str,
    *,
    lines: Sequence[str],
    examples: Sequence[Example],
    invalid: InvalidSamples,
    num_read: int,
) -> None:
    """Print examples and the summary's lines.

    Raises:
        UserError: all samples are invalid.
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
