"""Published tables: their arithmetic, and a re-run compared with the published values."""

from __future__ import annotations

from statistics import fmean

from benchmarks.analysis.check_base import CheckFailedError, CheckSkippedError, VerifyConfig, expect_close
from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.results.reference_results.load import ReferenceResult, load_reference_results, select_reference_results
from benchmarks.results.results import Result

_COCO_IMAGES = 5000


def check_averages(_: VerifyConfig) -> str:
    """open_clip's average is the mean of all its other columns (12 recalls, 7 WinoGAViL scores)."""
    rows = [row for row in load_reference_results() if row.set == "openclip"]
    for row in rows:
        others = [value for name, value in row.values.items() if name != "average"]
        expect_close(fmean(others), row.values["average"], f"average of {row.name}", tolerance=0.011)
    return f"{len(rows)} averages are the means of their {len(rows[0].values) - 1} columns"


def check_recalls(_: VerifyConfig) -> str:
    """Recall grows with its cutoff, and corresponds to an integer number of COCO's 5,000 images."""
    rows = load_reference_results()
    for row in rows:
        for name in ("coco/i2t", "coco/t2i", "flickr30k/i2t", "flickr30k/t2i"):
            found = [row.values[f"{name}_r{cut}"] for cut in (1, 5, 10) if f"{name}_r{cut}" in row.values]
            if found != sorted(found):
                raise CheckFailedError(f"{row.name}: recalls of {name} do not grow with K: {found}")
        if row.set == "openclip":
            _expect_integer(row, "coco/i2t_r1", _COCO_IMAGES)
    return f"recalls of {len(rows)} models grow with K and correspond to integer numbers of images"


def _expect_integer(row: ReferenceResult, name: str, num_images: int) -> None:
    correct = row.values[name] / 100 * num_images
    expect_close(correct, round(correct), f"{row.name}: number of correct images in {name}", tolerance=1e-3)


def check_rerun(config: VerifyConfig) -> str:
    """The published recalls of an open_clip model are in the intervals of its re-run."""
    if config.results is None:
        raise CheckSkippedError("needs --results DIR and --reference_model NAME, a model in open_clip's table")
    (published,) = select_reference_results([f"openclip:{config.reference_model}"])[:1]
    found = [
        line
        for results in find_results_by_row(config.results, "results").values()
        for result in results.values()
        for line in compare_with_published(result, published)
    ]
    if not found:
        raise CheckSkippedError("its results have no benchmark named coco… or flickr30k… with intervals")
    outside = [text for inside, text in found if not inside]
    if outside:
        raise CheckFailedError(f"{len(outside)} of {len(found)} outside: {'; '.join(outside)}")
    return "; ".join(text for _, text in found)


def compare_with_published(result: Result, published: ReferenceResult) -> list[tuple[bool, str]]:
    """(whether the published value is in the re-run's interval, both as text) for each recall that both have."""
    lines = []
    for name, metric in result.metrics.items():
        for dataset in ("coco", "flickr30k"):
            printed = published.values.get(f"{dataset}/{name}")
            if printed is None or metric.ci_low is None or metric.ci_high is None:
                continue
            if not result.benchmark.startswith(dataset):
                continue
            low, high = metric.ci_low * metric.scale, metric.ci_high * metric.scale
            found = f"{metric.value * metric.scale:.1f} [{low:.1f}, {high:.1f}]"
            lines.append((low <= printed <= high, f"{dataset} {metric.label} {found}, printed {printed:.1f}"))
    return lines
