"""``clips-bench study power``: where the noise of a study's differences comes from, and the seeds that it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.notes import column_components
from benchmarks.report.report import Selection
from benchmarks.report.table import Column
from benchmarks.report.text_table import markdown_frame, markdown_list
from benchmarks.results.power import MAX_SEEDS, Components
from clips.errors import UserError
from clips.ranges import Positive, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class PowerConfig:
    """Print the sources of the noise of a study's differences, and the seeds that detect a difference, as Markdown.

    Args:
        study: a study file, a study's output, or a directory of results.
        difference: the true difference to detect, in the unit of the report (points).
        benchmarks: only these: ``BENCHMARK`` or ``BENCHMARK:METRIC``; by default the columns of the report.
        num_tests: number of tests that the planned study corrects together; 1 is a single test.
    """

    study: str
    difference: PositiveFloat = 1.0
    benchmarks: tuple[str, ...] = ()
    num_tests: Positive = 1


def print_power(config: PowerConfig) -> None:
    """Print the table and what its columns mean.

    Raises:
        UserError: no results there, or no two models with items on the same images and scores off the scale's ends.
    """
    import pandas as pd

    from benchmarks.report.report import build_report
    from benchmarks.study.schema import read_study

    directory = Path(config.study)
    if not directory.is_dir():
        directory = read_study(config.study).directory
    report = build_report(directory, selection=Selection(benchmarks=config.benchmarks))
    components = column_components(report.table)
    if not components:
        raise UserError(f"{directory}: expected two models with items of one benchmark, and scores not near 0 or 100 %")
    index = pd.Index([column.title for column in components], name="metric")
    lines = [_line(column, parts, config) for column, parts in components.items()]
    print(markdown_frame(pd.DataFrame(lines, index=index, dtype=object)))
    print(f"\n{markdown_list(_notes(components, config))}")


def _line(column: Column, parts: Components, config: PowerConfig) -> dict[str, str]:
    spread = math.sqrt(parts.total) * column.scale
    shares = {"from images": parts.images, "from image × seed": parts.interaction, "from training": parts.training}
    is_known = parts.degrees and parts.total  # else the images have all of what is known
    line = {
        "images": str(parts.num_images),
        "SD": column.small_text(spread),
        **{name: f"{100 * part / parts.total:.0f} %" if is_known else "—" for name, part in shares.items()},
        f"seeds for {config.difference:g}": "—",
    }
    if parts.degrees:
        size = config.difference / column.scale
        needed = [each.seeds_for(size, num_tests=config.num_tests) for each in (parts, *parts.bounds())]
        seeds, *ends = ("none" if number is None else str(number) for number in needed)
        line[f"seeds for {config.difference:g}"] = f"{seeds} ({' to '.join(ends)})" if len({*ends}) > 1 else seeds
    return line


def _notes(components: dict[Column, Components], config: PowerConfig) -> list[str]:
    level = f"5 % / {config.num_tests} tests" if config.num_tests > 1 else "5 %, a single test"
    notes = [
        "SD: standard deviation of the difference of two models, each trained once, over images and training runs, "
        "in points; the mean over the pairs of the report. Its parts are ratios of the variance."
    ]
    if degrees := sorted({parts.degrees for parts in components.values() if parts.degrees}):
        span = " to ".join(map(str, dict.fromkeys((degrees[0], degrees[-1]))))
        notes.append(
            f"Seeds with which a true difference of {config.difference:g} is detected with power 0.8 (level {level}), "
            "for models that differ as much as these, in a study with as many trained models; 'none': not with "
            f"{MAX_SEEDS}. The variance over seeds has {span} degrees of freedom here; the numbers in parentheses are "
            "those at the ends of its 80 % interval."
        )
    if any(not parts.degrees for parts in components.values()):
        notes.append(
            "Without several seeds whose scores differ, the variance due to training is unknown, not zero, and with it "
            "the ratios and the number of seeds."
        )
    return notes
