"""Judge the paper's claims from the results of studies, by the criteria of docs/evidence.md, as a Markdown table.

    python scripts/judge_claims.py runs/inverse_effect runs/ablation
    python scripts/judge_claims.py runs/race
    python scripts/judge_claims.py runs/race_photos docs/scores/race_photos.csv --save docs/scores/race_photos.csv

Differences of T→I R@1, or of a LLaVA's mean of two metrics (on scenes POPE accuracy and GQA exact match, on photographs
CIDEr and COCO-QA exact match), in points, are taken at equal seed; intervals are Student's t over seeds, 95 %.

``--save`` writes the scores that were read to a CSV, which is read as the study's output is: seeds of one study can run
at different times or on different machines.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from scipy import stats

from clips.core.artifact import atomic_write

STRATEGIES = ("truncate", "random", "block", "sub_captions")
OBJECTIVES = ("clip", "siglip", "veclip", "sentences", "clips")  # of the race, with both towers
METRICS = {
    ("retrieval", "t2i_r1"): "",
    ("pope", "pope_accuracy"): "llava.",
    ("gqa", "exact_match"): "llava.",
    ("captions", "nocaps_CIDEr"): "photos_llava.",
    ("cocoqa", "exact_match"): "photos_llava.",
}
"""(entry of the study, metric) → prefix of its score."""
VERDICTS = ("contradicted", "needs two seeds", "not significant", "reproduced")
"""That of several comparisons is the first one that is among theirs."""
Scores = dict[str, dict[int, float]]
"""Encoder, or for a LLaVA its encoder's name after ``llava.`` or ``photos_llava.`` → seed → its mean, in points."""
RACES = {"race": ("scenes", "llava."), "race_photos": ("photos", "photos_llava.")}
"""Name of a study → its dataset and the prefix of its LLaVAs; claims D1 to D6 are judged for these studies only."""


class Score(NamedTuple):
    """A line of the CSV: ``value`` in points; ``benchmark`` as in `METRICS`; ``commit`` of the suite, if known."""

    study: str
    commit: str
    encoder: str
    seed: int
    benchmark: str
    metric: str
    value: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="+", type=Path, help="outputs of studies, or CSVs of --save")
    parser.add_argument(
        "--save", type=Path, metavar="CSV", help="write the scores, to be read with those of other seeds"
    )
    args = parser.parse_args()
    found: list[Score] = []
    for source in args.sources:
        try:
            rows = read_csv(source) if source.suffix == ".csv" else read_study(source)
            if not rows:
                raise ValueError(f"{source}: expected the output of a study, with results/")
            check_apart(found, rows, source)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        found += rows
    if args.save:
        save(found, args.save)
    print_claims(mean_scores(found), next((RACES[row.study] for row in found if row.study in RACES), None))
    return 0


def print_claims(scores: Scores, race: tuple[str, str] | None) -> None:
    print("| claim | dataset | compared | difference | seeds | verdict |\n| --- | --- | --- | ---: | ---: | --- |")
    verdicts: dict[str, list[str]] = {}
    for claim, world, words, one, other in [*claims(scores), *(race_claims(scores, *race) if race else ())]:
        if one and other:
            line = judged(scores, one, other)
            verdicts.setdefault(claim, []).append(line[-1])
            print("|", " | ".join([claim, world, words, *line]), "|")
    for claim, number in {"D1": 3, "D3": 4}.items():  # judged once, from all of their comparisons
        if len(each := verdicts.get(claim, [])) == number:
            print("|", " | ".join([claim, race[0] if race else "", "all", "", "", min(each, key=VERDICTS.index)]), "|")
    if race and all(race[1] + name in scores and name in scores for name in OBJECTIVES):
        print("|", " | ".join(["D6", race[0], "correlation of the orders", *judged_orders(scores, race[1])]), "|")


def read_study(run: Path) -> list[Score]:
    """The scores of a study's output that claims are judged by."""
    record = run / "study.json"
    study = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    commit = str(study.get("git", {}).get("commit") or "")[:8]
    found = []
    for path in sorted(run.glob("results/*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        name = re.fullmatch(r"(.*?)(-tiny|-small)?-s(\d+)", result["model_name"])
        for (benchmark, metric), prefix in METRICS.items():
            named = result["benchmark"] == benchmark or not prefix  # an entry of retrieval may have any name
            if name and named and result["status"] == "ok" and metric in result["metrics"]:
                value = 100 * result["metrics"][metric]["value"]
                found.append(Score(study.get("name", ""), commit, name[1], int(name[3]), benchmark, metric, value))
    return found


def read_csv(path: Path) -> list[Score]:
    """The scores that ``--save`` wrote.

    Raises:
        ValueError: it is another file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = [*csv.reader(file)] or [[]]
    if tuple(head) != Score._fields:
        raise ValueError(f"{path}: expected the columns {', '.join(Score._fields)}")
    found = []
    for number, row in enumerate(rows, 2):
        try:
            study, commit, encoder, seed, benchmark, metric, value = row
            score = Score(study, commit, encoder, int(seed), benchmark, metric, float(value))
        except ValueError:
            raise ValueError(f"{path} line {number}: expected a line of --save, got {','.join(row)!r:.80}") from None
        if (benchmark, metric) not in METRICS:
            raise ValueError(f"{path} line {number}: expected a metric that claims are judged by, got {metric!r}")
        found.append(score)
    return found


def check_apart(earlier: Sequence[Score], rows: Sequence[Score], source: Path) -> None:
    """Raise ValueError if an encoder has scores in both, unless they are other seeds of the same study.

    Or if it has two scores of one seed and metric, as with two LLMs or two retrieval sets.
    """
    each = Counter((row.encoder, row.seed, row.benchmark, row.metric) for row in rows)
    if (most := max(each, key=each.__getitem__)) and each[most] > 1:
        raise ValueError(f"{source}: expected one {most[3]} of {most[0]} with seed {most[1]}, got {each[most]}")
    both = {row.encoder for row in earlier} & {row.encoder for row in rows}
    studies = {row.study for row in [*earlier, *rows] if row.encoder in both}
    if len(studies) > 1 or "" in studies:
        raise ValueError(f"{source}: an earlier source has {', '.join(sorted(both))}, too; judge them apart")
    if twice := {(row.encoder, row.seed) for row in earlier} & {(row.encoder, row.seed) for row in rows}:
        name, seed = min(twice)
        raise ValueError(f"{source}: an earlier source has seed {seed} of {name}, too")


def save(rows: Sequence[Score], path: Path) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Score._fields)
    table.writerows(row._replace(value=round(row.value, 6)) for row in sorted(rows))
    atomic_write(path, text.getvalue())


def mean_scores(rows: Sequence[Score]) -> Scores:
    """The mean of the metrics of an encoder, and of its LLaVA, for each seed that has all of them."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        found.setdefault((METRICS[row.benchmark, row.metric], row.encoder, row.seed), []).append(row.value)
    scores: Scores = {}
    for (prefix, encoder, seed), values in found.items():
        if len(values) == list(METRICS.values()).count(prefix):
            scores.setdefault(prefix + encoder, {})[seed] = fmean(values)
    return scores


def claims(scores: Scores) -> Iterable[tuple[str, str, str, list[str], list[str]]]:
    """(claim, dataset, comparison, encoders of one side, encoders of the other); each side is averaged."""

    def there(*names: str) -> list[str]:
        return [name for name in names if name in scores]

    for world in ("coco", "flickr", "scenes_mllm", "scenes_kinds", "scenes_complete"):
        parts = there(*(f"{world}.{strategy}.32" for strategy in STRATEGIES))
        yield "A1", world, f"{len(parts)} strategies at 32 tokens − whole", parts, there(f"{world}_whole")
        for short, long in itertools.combinations((8, 16, 32), 2):
            # strategies that were run at one of the lengths only would bias the difference of the means
            both = [
                f"{world}.{name}."
                for name in STRATEGIES
                if len(there(f"{world}.{name}.{short}", f"{world}.{name}.{long}")) == 2
            ]
            sides = [name + str(short) for name in both], [name + str(long) for name in both]
            yield "A4", world, f"{short} tokens − {long}, mean of {len(both)} strategies", *sides
        for good in ("sub_captions", "block"):
            for bad in ("truncate", "random"):
                pair = there(f"{world}.{good}.16"), there(f"{world}.{bad}.16")
                yield "A2", world, f"{good} − {bad}, 16 tokens", *pair
    for world in ("scenes_web", "flickr_web"):
        for cut in sorted(name for name in scores if name.startswith(f"{world}.")):
            yield "A3", world, f"whole − {cut.removeprefix(f'{world}.')}", there(f"{world}_whole"), [cut]
    for world in ("scenes", "scenes_long", "flickr", "flickr_open", "photos", "coco"):
        steps = [f"{world}.{name}" for name in ("clip", "one_positive", "multi_positive", "clips")]
        for number, (before, after) in enumerate(itertools.pairwise(steps), 1):
            words = f"{after.partition('.')[2]} − {before.partition('.')[2]}"
            yield f"B{number}", world, words, there(after), there(before)
        for name in ("clips_light", "clips_forced"):
            yield "B3", world, f"{name} − multi_positive", there(f"{world}.{name}"), there(steps[2])
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


def race_claims(scores: Scores, dataset: str, llava: str) -> Iterable[tuple[str, str, str, list[str], list[str]]]:
    """Like `claims`, those of a race on ``dataset``, whose LLaVAs have the prefix ``llava``."""
    for claim, metric, one, others in (
        ("D1", "", "veclip", ["clip"]),
        ("D1", "", "sentences", ["clip"]),
        ("D1", "", "clips", ["clip"]),
        ("D2", "", "sentences", ["veclip"]),
        ("D3", "", "clips", [name for name in OBJECTIVES if name != "clips"]),
        ("D4", llava, "clips", ["clip"]),
        ("D5", llava, "caption_only", ["clip"]),
    ):
        for other in others:
            words = f"{one} − {other}" + (", inside a LLaVA" if metric else "")
            above, below = ([name] if name in scores else [] for name in (f"{metric}{one}", f"{metric}{other}"))
            yield claim, dataset, words, above, below


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's t 95 % interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return fmean(values) - half, fmean(values) + half


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


def judged_orders(scores: Scores, llava: str) -> list[str]:
    """D6: Spearman's correlation over the objectives of retrieval and LLaVAs, its interval over seeds, the verdict."""
    sides = [[scores[prefix + name] for name in OBJECTIVES] for prefix in ("", llava)]
    seeds = sorted(set.intersection(*(set(each) for side in sides for each in side)))
    found = [float(stats.spearmanr(*([each[seed] for each in side] for side in sides))[0]) for seed in seeds]
    interval = t_interval(found)
    if interval is None:
        return [f"{fmean(found):+.2f}" if found else "–", str(len(found)), "needs two seeds"]
    mean = fmean(found)
    verdict = "reproduced" if mean < 0.5 and interval[1] < 1 else "contradicted" if mean > 0.9 else "not significant"
    low, high = max(interval[0], -1.0), min(interval[1], 1.0)  # Student's interval may exceed a correlation's range
    return [f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", str(len(found)), verdict]


if __name__ == "__main__":
    sys.exit(main())
