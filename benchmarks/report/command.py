"""``clips-bench report DIR``: write every format of the report and print the main table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.output import writable_directory
from clips.artifact import say, write_file
from clips.errors import suggest


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the report of a study, or of any directory of result files.

    Args:
        directory: a study's output, or a directory with ``<row>/<benchmark>.json``.
        output: where the report goes; where not given ``report`` inside the directory, ``report-against-ROW`` with a
            baseline, so that the study's own stays.
        baseline: the row that the others are compared with; as the study says where not given.
        published: rows that others have printed, shown apart: SET or SET:ROW, ``clips`` or ``openclip:ViT-B-32/openai``
            (sets: clips, openvision, siglip2, pe, llava, llava_more, openclip). Where ``baseline`` names one of them,
            the others' differences to it are shown.
        formats: which of html, csv, json, published, seeds, settings, markdown, latex to write; all where empty.
    """

    directory: str
    output: str | None = None
    baseline: str | None = None
    published: tuple[str, ...] | str = ()
    formats: tuple[str, ...] = ()


def report(config: ReportConfig) -> None:
    """Write the report's files and print the table and their place.

    Raises:
        UserError: nothing to report, an unreadable result, an unknown baseline or format, no place to write.
    """
    from rich.console import Console

    from benchmarks.report.formats import FORMATS
    from benchmarks.report.model import build_report
    from benchmarks.report.terminal import print_table

    for name in config.formats:
        if name not in FORMATS:
            raise suggest(name, FORMATS, "format")
    built = build_report(config.directory, baseline=config.baseline, published=_names(config.published))
    output = writable_directory(config.output or Path(config.directory) / _folder(config.baseline))
    texts = {output / FORMATS[name].file: FORMATS[name].render(built) for name in config.formats or FORMATS}
    written = [path for path, text in texts.items() if text]
    for path in written:
        write_file(path, texts[path])
    print_table(built, Console(highlight=False))
    say(f"report: {', '.join(map(str, written if config.formats else written[:1]))}")


def _names(published: tuple[str, ...] | str) -> tuple[str, ...]:
    """A list, or names with commas between."""
    return tuple(name.strip() for name in published.split(",")) if isinstance(published, str) else published


def _folder(baseline: str | None) -> str:
    return "report" if baseline is None else "report-against-" + re.sub(r"[^\w.-]+", "_", baseline)
