"""Judge the paper's claims from the results of studies, by the criteria of docs/evidence.md, as a Markdown table.

    python scripts/judge_claims.py runs/inverse_effect runs/ablation

Differences of T→I R@1, in points, are taken at equal seed; intervals are Student's t over seeds, 95 %.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from scipy import stats

STRATEGIES = ("truncate", "random", "block", "sub_captions")
Scores = dict[str, dict[int, float]]  # encoder → seed → R@1 in points


def main() -> int:
    scores: Scores = {}
    for run in sys.argv[1:]:
        found = read(Path(run))
        if not found:
            print(f"{run}: expected the output of a study, with results/", file=sys.stderr)
            return 2
        scores |= found
    print("| claim | dataset | compared | difference | seeds | verdict |\n| --- | --- | --- | ---: | ---: | --- |")
    for claim, world, words, one, other in claims(scores):
        if one and other:
            print("|", " | ".join([claim, world, words, *judged(scores, one, other)]), "|")
    return 0


def read(run: Path) -> Scores:
    scores: Scores = {}
    for path in sorted(run.glob("results/*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        name = re.fullmatch(r"(.*)-s(\d+)", result["model_name"])
        if name and result["status"] == "ok" and "t2i_r1" in result["metrics"]:
            scores.setdefault(name[1], {})[int(name[2])] = 100 * result["metrics"]["t2i_r1"]["value"]
    return scores


def claims(scores: Scores) -> Iterable[tuple[str, str, str, list[str], list[str]]]:
    """(claim, dataset, comparison, encoders of one side, encoders of the other); each side is averaged."""

    def there(*names: str) -> list[str]:
        return [name for name in names if name in scores]

    for world in ("coco", "flickr", "scenes_mllm", "scenes_kinds", "scenes_complete"):
        parts = there(*(f"{world}.{strategy}.32" for strategy in STRATEGIES))
        yield "A1", world, f"{len(parts)} strategies at 32 tokens − whole", parts, there(f"{world}_whole")
        by_length = {cut: there(*(f"{world}.{strategy}.{cut}" for strategy in STRATEGIES)) for cut in (8, 16, 32)}
        for short, long in itertools.combinations(by_length, 2):
            yield "A4", world, f"{short} tokens − {long}, mean of strategies", by_length[short], by_length[long]
        for good in ("sub_captions", "block"):
            for bad in ("truncate", "random"):
                pair = there(f"{world}.{good}.16"), there(f"{world}.{bad}.16")
                yield "A2", world, f"{good} − {bad}, 16 tokens", *pair
    for world in ("scenes_web", "flickr_web"):
        for cut in sorted(name for name in scores if name.startswith(f"{world}.")):
            yield "A3", world, f"whole − {cut.removeprefix(f'{world}.')}", there(f"{world}_whole"), [cut]
    for world in ("scenes", "scenes_long", "flickr", "flickr_open", "coco"):
        steps = [f"{world}.{name}" for name in ("clip", "one_positive", "multi_positive", "clips")]
        for number, (before, after) in enumerate(itertools.pairwise(steps), 1):
            words = f"{after.partition('.')[2]} − {before.partition('.')[2]}"
            yield f"B{number}", world, words, there(after), there(before)
        yield "B3", world, "clips_light − multi_positive", there(f"{world}.clips_light"), there(steps[2])
        yield "B4", world, "coca − recap", there(f"{world}.coca"), there(f"{world}.recap")
        for number, (before, after) in enumerate(itertools.pairwise(steps[:3]), 1):
            words = f"{after.partition('.')[2]} − {before.partition('.')[2]}, equal compute"
            yield f"B{number}", world, words, there(f"{after}_compute"), there(f"{before}_compute")
        for claim, others in (
            ("C1", [f"{world}.{name}" for name in ("clip", "recap", "veclip", "clipa", "coca")]),
            ("C2", sorted(name for name in scores if name.startswith(f"{world}.") and name.endswith("_compute"))),
        ):
            for other in others:
                yield claim, world, f"clips − {other.partition('.')[2]}", there(f"{world}.clips"), there(other)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's t 95 % interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    low, high = stats.t.interval(0.95, len(values) - 1, loc=fmean(values), scale=stats.sem(values))
    return float(low), float(high)


def judged(scores: Scores, one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The difference with its interval, the number of seeds, and the verdict."""
    seeds = set.intersection(*(set(scores[name]) for name in [*one, *other]))
    values = [
        fmean(scores[name][seed] for name in one) - fmean(scores[name][seed] for name in other)
        for seed in sorted(seeds)
    ]
    interval = t_interval(values)
    if interval is None:
        return [f"{fmean(values):+.1f}" if values else "–", str(len(values)), "needs two seeds"]
    low, high = interval
    verdict = "reproduced" if low > 0 else "contradicted" if high < 0 else "not significant"
    return [f"{fmean(values):+.1f} [{low:+.1f}, {high:+.1f}]", str(len(values)), verdict]


if __name__ == "__main__":
    sys.exit(main())
