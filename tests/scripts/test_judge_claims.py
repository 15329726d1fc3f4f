"""``scripts/judge_claims.py``: what it says of made scores, whose truth is known, and of a study's results."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from report_material import METRICS, items_table, put_result
from report_study import record_study
from safetensors.numpy import load_file
from script_modules import load_script

from benchmarks.report.report import build_report
from benchmarks.results.noise import training_noise
from benchmarks.study.schema import read_study
from benchmarks.study.state import Step
from benchmarks.tasks.evaluation import MetricSpec
from clips.commandline.parsing import parse_config
from clips.errors import UserError
from clips.training import mfu
from clips.training.train_config import EncoderTrainConfig, stage_configs

judge_claims = load_script("judge_claims.py")
insert_tables = load_script("insert_tables.py")
STUDIES = Path(__file__).parents[2] / "scripts/studies"
CLAIM = judge_claims.Claim(
    name="A1", text="a above b", study="made", benchmark="test", weights={"a": 1, "b": -1}, seeds=3
)

MADE = """
name: made
baseline: b
seeds: [0, 1, 2]
encoders: {a: {}, b: {}, c: {}}
benchmarks: {retrieval: {data: d}}
"""


def made_hits(rng: np.random.Generator, logits: dict[str, float], seeds: int = 3, images: int = 60) -> pd.DataFrame:
    """Hits of encoders on four queries of each image; noise of images, of encoders on them, and of trainings."""
    shown = np.repeat(np.arange(images), 4)
    easy = rng.normal(-1.0, 1.2, images)[shown] + rng.normal(0, 1, len(shown))
    frames = []
    for name, logit in logits.items():
        own = easy + logit + rng.normal(0, 0.5, images)[shown]
        for seed in range(seeds):
            hits = own + rng.normal(0, 0.15) + rng.normal(0, 0.8, len(shown)) > 0
            frames.append(
                pd.DataFrame({
                    "item": [f"{number:04d}" for number in range(len(shown))],
                    "image": [f"{number:03d}" for number in shown],
                    "value": hits.astype("float32"),
                    "encoder": name, "seed": seed, "benchmark": "test", "metric": "t2i_r1",
                })
            )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def write_scores(folder: Path, items: pd.DataFrame) -> Path:
    """``made.csv`` and ``made.parquet``."""
    folder.mkdir(parents=True, exist_ok=True)
    items.to_parquet(folder / "made.parquet")
    lines = (100 * items.groupby(["encoder", "seed", "benchmark", "metric"])["value"].mean()).reset_index()
    lines.to_csv(folder / "made.csv", index=False)
    return folder


def verdict(folder: Path, *claims: Any) -> pd.Series:
    """The line of the first claim."""
    return judge_claims.judge(claims or (CLAIM,), {"made": judge_claims.read_study(folder, "made")}).iloc[0]


def test_a_large_effect_is_reproduced_and_its_opposite_contradicted(tmp_path):
    folder = write_scores(tmp_path, made_hits(np.random.default_rng(0), {"a": 2.0, "b": 0.0}))
    found = verdict(folder)
    assert found["verdict"] == "reproduced"
    low, high = (float(end) for end in found["estimate"].split("[")[1].rstrip("]").split(", "))
    assert 0 < low < high
    assert float(found["p"]) < 0.05
    pairs = pd.read_csv(folder / "made.csv").pivot_table("value", "encoder", "seed")
    interval = scipy.stats.ttest_rel(pairs.loc["a"], pairs.loc["b"]).confidence_interval(0.95)
    assert found["seeds alone"] == f"[{interval.low:+.1f}, {interval.high:+.1f}]"
    opposite = dataclasses.replace(CLAIM, weights={"a": -1, "b": 1})
    assert verdict(folder, opposite)["verdict"] == "contradicted"


def test_an_effect_within_the_noise_is_inconclusive(tmp_path):
    found = verdict(write_scores(tmp_path, made_hits(np.random.default_rng(3), {"a": 0.1, "b": 0.0})))
    assert found["verdict"] == "inconclusive"
    low, high = (float(end) for end in found["estimate"].split("[")[1].rstrip("]").split(", "))
    assert low < 0 < high


def test_a_missing_seed_leaves_no_verdict(tmp_path):
    items = made_hits(np.random.default_rng(0), {"a": 2.0, "b": 0.0})
    found = verdict(write_scores(tmp_path, items[(items["encoder"] != "b") | (items["seed"] != 1)]))
    assert (found["verdict"], found["p"]) == ("incomplete: fewer than 3 seeds of b", "")
    assert found["estimate"].startswith("+")
    found = verdict(write_scores(tmp_path, items[items["encoder"] != "b"]))
    assert (found["verdict"], found["estimate"]) == ("not run", "—")


def test_expected_hits_of_ties_count_in_part(tmp_path):
    items = made_hits(np.random.default_rng(0), {"a": 0.0, "b": 0.0})
    items.loc[items["encoder"] == "a", "value"] = 0.5
    folder = write_scores(tmp_path, items)
    column = judge_claims.read_study(folder, "made")["test", "t2i_r1"]
    assert column.scores["a"].value == pytest.approx(0.5)
    others = items.loc[items["encoder"] == "b", "value"].mean()
    assert verdict(folder)["estimate"].startswith(f"{100 * (0.5 - others):+.1f}")


def test_claims_of_an_experiment_are_corrected_together_though_some_are_not_run(tmp_path):
    folder = write_scores(tmp_path, made_hits(np.random.default_rng(0), {"a": 2.0, "b": 0.0}))
    alone = float(verdict(folder)["p"])
    others = [dataclasses.replace(CLAIM, name=f"A{number}", study="later") for number in (2, 3, 4)]
    assert float(verdict(folder, CLAIM, *others)["p"]) == pytest.approx(4 * alone, rel=0.1)
    untested = dataclasses.replace(others[0], condition="short queries")
    elsewhere = dataclasses.replace(others[1], name="B1")
    assert float(verdict(folder, CLAIM, untested, elsewhere)["p"]) == pytest.approx(alone, rel=0.1)


def test_contrasts_have_a_table_by_condition_and_no_verdict(tmp_path):
    items = made_hits(np.random.default_rng(0), {"a": 2.0, "b": 0.0, "c": 0.0})
    columns = {"made": judge_claims.read_study(write_scores(tmp_path, items), "made")}
    of_c, of_a = (
        [dataclasses.replace(CLAIM, text=f"{name} − b", weights={name: 1, "b": -1}, seeds=seeds, condition=condition)
         for seeds, condition in conditions]
        for name, conditions in (("c", [(3, "z"), (4, "a")]), ("a", [(3, "z")]))
    )  # fmt: skip
    judged = judge_claims.judge([CLAIM, *of_c, *of_a], columns)
    assert [*judged["verdict"]][:2] == ["reproduced", "inconclusive"]
    table = judge_claims.contrast_table(judged)
    assert ([*table.index], [*table.columns]) == (["c − b", "a − b"], ["z", "a"])
    assert table.loc["a − b", "z"] == judged["estimate"].iloc[0]
    assert table.loc["c − b", "a"] == table.loc["c − b", "z"] + " (incomplete)"
    assert table.loc["a − b", "a"] == ""


def test_a_claim_is_not_decided_where_what_it_requires_is_absent(tmp_path):
    items = made_hits(np.random.default_rng(0), {"a": 2.0, "b": 0.0})
    claim = dataclasses.replace(CLAIM, requires=("test", "gain"))
    assert verdict(write_scores(tmp_path, items), claim)["verdict"] == "not tested: test gain is not above 0"
    gain = items[items["encoder"] == "a"].assign(metric="gain")
    assert verdict(write_scores(tmp_path, pd.concat([items, gain])), claim)["verdict"] == "reproduced"
    other = dataclasses.replace(claim, requires=("test", "older gain", "gain"))
    assert verdict(write_scores(tmp_path, pd.concat([items, gain])), other)["verdict"] == "reproduced"
    gain.loc[gain["seed"] == 2, "value"] = -0.1
    found = verdict(write_scores(tmp_path, pd.concat([items, gain])), claim)
    assert found["verdict"] == "not tested: test gain is not above 0"


def test_a_csv_that_contradicts_its_items_is_rejected(tmp_path):
    folder = write_scores(tmp_path, made_hits(np.random.default_rng(0), {"a": 0.0, "b": 0.0}))
    text = (folder / "made.csv").read_text()
    lines = pd.read_csv(folder / "made.csv")
    lines.loc[0, "value"] += 1
    lines.to_csv(folder / "made.csv", index=False)
    with pytest.raises(UserError, match="expected the means of the items"):
        judge_claims.read_study(folder, "made")
    (folder / "made.csv").write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(UserError, match="expected the means of the items"):
        judge_claims.read_study(folder, "made")


def test_an_exported_study_has_the_intervals_of_its_report(tmp_path, monkeypatch):
    """Hits, ties, blocked queries and a seed that failed go through the files; the report reads the results."""
    monkeypatch.setitem(METRICS, "retrieval", {"t2i_r1": MetricSpec(label="T→I R@1", columns=("t2i_r1",))})

    def change(step: Step) -> dict[str, Any]:
        return {"git": {"commit": "0123456789abcdef", "dirty": False}, "output_paths": (f"encoders/{step.name[8:]}",)}

    study, rng = tmp_path / "runs", np.random.default_rng(1)
    record_study(MADE, study, change)
    for name, seed in ((name, seed) for name in "abc" for seed in range(3) if (name, seed) != ("c", 2)):
        items = items_table(0.0, benchmark="retrieval", count=200)
        hits = (rng.random(200) < {"a": 0.6, "b": 0.4, "c": 0.4}[name]).astype(float)
        hits[:4] = 0.5
        items["t2i_r1"] = items["score"] = hits
        items["blocker"] = [f"picture-{rng.integers(100)}" if hit == 0 else None for hit in hits]
        digest = f"{name} {seed}"
        put_result(study / "results", f"{name}-s{seed}", "retrieval", items, primary=("t2i_r1",), digest=digest)
        if name != "b":
            trained = study / "encoders" / f"{name}-s{seed}"
            trained.mkdir(parents=True, exist_ok=True)
            (trained / "manifest.json").write_text(json.dumps({"steps": 30, "last": {"flops_per_sample": 2.5e6}}))
    judge_claims.export(study, tmp_path / "scores")
    lines = pd.read_csv(tmp_path / "scores/made.csv")
    described = ["study", "commit", "encoder", "seed", "benchmark", "metric"]
    assert list(lines) == [*described, "value", "n", "minutes", "steps", "mflop"]
    assert {*lines.loc[lines["encoder"] != "b", "steps"]} == {30}
    assert {*lines.loc[lines["encoder"] != "b", "mflop"]} == {2.5}
    assert lines.loc[lines["encoder"] == "b", ["steps", "mflop"]].isna().all(axis=None)  # no training of ours
    assert len(lines) == 8
    assert {*lines["commit"]} == {"0123456789ab"}
    assert {*lines["minutes"]} == {0.1} or {*lines["minutes"]} == {0.2}
    column = judge_claims.read_study(tmp_path / "scores", "made")["retrieval", "t2i_r1"]
    assert column.seeds == {"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1)}
    table = build_report(study).table
    expected = table.cells(table.columns[0])
    for cell in expected:
        ours = judge_claims.scores_interval(column.scores[cell.row], column.noise)
        assert (100 * ours.low, 100 * ours.high) == pytest.approx((cell.ci_low, cell.ci_high), abs=1e-6)
    claim = dataclasses.replace(CLAIM, benchmark="retrieval")
    found = judge_claims.judge([claim], {"made": {("retrieval", "t2i_r1"): column}}).iloc[0]
    delta = next(cell.delta for cell in expected if cell.row == "a")
    assert found["estimate"] == f"{delta.value:+.1f} [{delta.ci_low:+.1f}, {delta.ci_high:+.1f}]"
    assert found["verdict"] == "reproduced"


def test_captions_are_kept_and_described(tmp_path, monkeypatch):
    spec = MetricSpec(label="CIDEr", columns=("cider",), aggregation="mean_of_scores")
    monkeypatch.setitem(METRICS, "recaption", {"CIDEr": spec})
    texts = {
        0: ["a dog runs", "a a a a", "a a a a", "two dogs"],
        1: ["a dog runs", "a cat", "two dogs", "the sea"],  # the same caption as with the other seed is another image's
    }
    study = tmp_path / "runs"
    record_study(MADE.replace("retrieval: {", "recaption: {"), study)
    for seed, captions in texts.items():
        items = items_table(0.0, benchmark="recaption", count=4)
        items["cider"] = items["score"] = 0.1
        items["prediction"] = captions
        put_result(study / "results", f"a-s{seed}", "recaption", items, primary=("CIDEr",), digest=f"{seed}")
    judge_claims.export(study, tmp_path)
    found = judge_claims.caption_table(pd.read_parquet(tmp_path / "made.parquet"))
    assert {**found.loc["a"]} == {
        "seeds": 2,
        "captions": 8,
        "distinct": "75 %",
        "words": "3 each, of 2 kinds",
        "most frequent": "a (50 %)",
        "first caption": "a dog runs",
    }


@pytest.mark.slow
def test_error_rate_and_power_of_verdicts():
    """Of 400 studies without an effect about 5 % have a verdict; of 200 with the detectable effect about 80 %."""

    def verdicts(count: int, logit: float) -> tuple[list[str], list[float], list[float]]:
        found = []
        for number in range(count):
            items = made_hits(np.random.default_rng([number, 7]), {"a": logit, "b": 0.0, "c": 0.0})
            scores = {name: judge_claims.of_items(rows, "t2i_r1") for name, rows in items.groupby("encoder")}
            seeds = dict.fromkeys(scores, (0, 1, 2))
            column = judge_claims.Column(scores, seeds, training_noise([*scores.values()]))
            line = judge_claims.judge([CLAIM], {"made": {("test", "t2i_r1"): column}}).iloc[0]
            found.append((line["verdict"], float(line["estimate"].split()[0]), float(line["MDD"])))
        names, estimates, detectable = zip(*found, strict=True)
        return [*names], [*estimates], [*detectable]

    names, _, detectable = verdicts(400, 0.0)
    wrong = 1 - names.count("inconclusive") / len(names)
    assert 0.015 < wrong < 0.085
    names, estimates, _ = verdicts(200, 0.62)
    assert np.mean(estimates) == pytest.approx(np.mean(detectable), rel=0.25)
    assert 0.65 < names.count("reproduced") / len(names) < 0.95
    assert "contradicted" not in names


def test_curves_of_equal_compute_have_the_cost_here_and_at_l_14(tmp_path):
    names = {"clip.25": 300, "clip.25.600": 600, "clips.25": 300, "clips.25.150": 150, "veclip.25.300": 300}
    items = made_hits(np.random.default_rng(0), dict.fromkeys([*names, "clip.0", "two_web.25"], 0.0))
    column = judge_claims.read_study(write_scores(tmp_path, items), "made")["test", "t2i_r1"]
    lines = pd.read_csv(tmp_path / "made.csv")
    lines["steps"] = lines["encoder"].map(names).fillna(300)
    lines["mflop"] = np.where(lines["encoder"].str.startswith("clips"), 520, 200)
    lines.to_csv(tmp_path / "positives.csv", index=False)
    table = judge_claims.curves(tmp_path, column)
    found = [(row.recipe, row.steps, round(row.cost, 2), round(row.cost_l14, 3)) for row in table.itertuples()]
    assert found == [
        ("clip", 300, 1.0, 1.0),
        ("clip", 600, 2.0, 2.0),
        ("clips", 150, 1.3, 1.225),
        ("clips", 300, 2.6, 2.45),
        ("veclip", 300, 1.0, 1.0),
    ]
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    svg = judge_claims.draw_curves(table)
    assert svg.startswith("<svg")
    assert all(name in svg for name in ("clips", "veclip", "FLOPs of the training"))


def test_a_recipe_of_equal_cost_is_between_the_two_runs_next_to_it():
    for name, steps, expected in (
        ("clip", 150, {"clip.25.150": 1.0, "clip.25": 0.0}),
        ("clip", 150 * 2**0.25, {"clip.25.150": 0.75, "clip.25": 0.25}),
        ("clip", 735, {"clip.25.600": 1 - math.log2(735 / 600), "clip.25.1200": math.log2(735 / 600)}),
        ("clip", 1200, {"clip.25.600": 0.0, "clip.25.1200": 1.0}),
        ("veclip", 300 * 2**0.5, {"veclip.25.300": 0.5, "veclip.25.600": 0.5}),
    ):
        found = judge_claims.minus_after(name, steps)
        assert {run: -weight for run, weight in found.items()} == pytest.approx(expected)


@pytest.mark.slow
def test_costs_are_those_of_the_schedule_of_l_14():
    schedule = str(STUDIES.parent / "configs/clips-l-14.yaml")
    flops = {}
    for name in judge_claims.COSTS:
        recipe = ["clips", "--recipe.caption_loss_weight", "0"] if name == "multi_positive" else [name]
        config = parse_config(EncoderTrainConfig, ["--config", schedule, "--recipe.name", *recipe], prog="test")
        assert config is not None
        of_stages = []
        for stage in stage_configs(config):
            model = mfu.fake_model(stage.model, stage.recipe)
            a_sample = mfu.flops_per_sample(stage, mfu.full_batch(model, 4), 1)
            a_sample += mfu.contrastive_flops(model, stage.global_batch_size - 4)
            of_stages.append((stage.steps_for(0) * stage.global_batch_size, a_sample))
        flops[name] = of_stages[1][1], sum(samples * each for samples, each in of_stages)
    for name, costs in judge_claims.COSTS.items():
        expected = [own / clip for own, clip in zip(flops[name], flops["clip"], strict=True)]
        assert costs == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("study", ["lengths", "positives", "captioner"])
def test_claims_are_about_what_the_studies_train(study):
    read = read_study(STUDIES / f"{study}.yaml")
    of_study = [claim for claim in judge_claims.CLAIMS if claim.study == study]
    assert of_study
    for claim in of_study:
        assert claim.benchmark in read.benchmarks
        assert {*claim.weights} <= {*read.encoders}
        assert all(read.evaluates(claim.benchmark, name) for name in claim.weights)
        assert len(read.seeds) == claim.seeds
        assert sum(claim.weights.values()) == pytest.approx(0)


@pytest.mark.slow
def test_the_page_states_what_the_script_computes(tmp_path, capsys, monkeypatch):
    docs = STUDIES.parents[1] / "docs"
    monkeypatch.setattr("sys.argv", ["judge_claims.py", str(docs / "scores")])
    assert judge_claims.main() == 0
    written = capsys.readouterr().out
    computed = written.replace("\\", "")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/claims.md").write_text(written, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    tables, missing = (docs / "scores/README.md").read_text(encoding="utf-8"), []
    assert tables.count("<!-- table: runs/claims.md#") > 5
    assert "\n".join(insert_tables.insert_tables(tables, missing)) + "\n" == tables
    assert missing == []
    verdicts = (docs / "evidence.md").read_text(encoding="utf-8").replace("−", "-")
    page = verdicts + (docs / "scores" / "README.md").read_text(encoding="utf-8").replace("−", "-").replace("\\", "")
    readme = (docs.parent / "README.md").read_text(encoding="utf-8").replace("−", "-")
    pattern = re.compile(r"([+-]?\d+\.\d+) \[([+-]?\d+\.\d+), ([+-]?\d+\.\d+)\]")
    known, stated = ({tuple(map(float, found)) for found in pattern.findall(each)} for each in (computed, page))
    assert len(stated) > 20
    assert stated - known == set()
    said = re.findall(r"(-?\d+\.\d) points", readme.partition("## What holds of the paper")[2])
    assert len(said) == 4
    assert {abs(float(number)) for number in said} <= {abs(value) for value, *_ in known}
    rows = re.findall(r"^\| ([A-E]\d+) \|.*?\| ([+-][^|]+\]) \| ([^|]+) \|", verdicts, re.M)
    assert len(rows) > 4
    lines = [[cell.strip() for cell in line.split("|")] for line in computed.splitlines()]
    for name, estimate, verdict in rows:
        assert any({name, estimate, verdict.strip("* ")} <= {*line} for line in lines), name


def test_the_table_of_the_readme_has_the_scores_of_the_demo():
    root = STUDIES.parents[1]
    columns = judge_claims.read_study(root / "docs/scores", "demo")
    metrics = [("retrieval", "t2i_r1"), ("retrieval", "i2t_r1"), ("pope", "pope_accuracy"), ("gqa", "exact_match"),
               ("nocaps_val", "nocaps_CIDEr")]  # fmt: skip
    for name in ("untrained", "clip", "clips"):
        (row,) = re.findall(rf"^\| {name} \| (.*) \|$", (root / "README.md").read_text(encoding="utf-8"), re.M)
        for metric, cell in zip(metrics, row.replace("*", "").split(" | "), strict=True):
            scores = columns[metric].scores[name]
            value, margin = cell.split(" ")
            assert float(value) == round(100 * scores.value, 1)
            found = judge_claims.scores_interval(scores, columns[metric].noise)
            if margin.startswith("±"):  # a report pools the variance of seeds over its omitted columns, too
                assert float(margin[1:]) == pytest.approx(50 * (found.high - found.low), rel=0.08)


def test_the_readme_says_how_good_the_demos_llava_is():
    root = STUDIES.parents[1]
    parameters, wrong = re.search(r"whose LLM has ([\d.]+) M parameters; (\d+) % of its answers to GQA are wrong",
                                  (root / "README.md").read_text(encoding="utf-8")).groups()  # fmt: skip
    (weights,) = (root / "scripts/demo/llm").glob("*.safetensors")
    assert float(parameters) == round(sum(tensor.size for tensor in load_file(weights).values()) / 1e6, 1)
    scores = judge_claims.read_study(root / "docs/scores", "demo")["gqa", "exact_match"].scores
    assert int(wrong) == round(100 - 100 * scores["clips"].values[0])  # of seed 0, to which the chat line talks


def race_lines(rng: np.random.Generator, retrieval: dict[str, float], inside: dict[str, float]) -> pd.DataFrame:
    """Scores of five seeds around the means of encoders."""
    lines = [
        {"encoder": name, "seed": seed, "metric": metric, "value": mean + 0.1 * rng.normal()}
        for metric, means in (("t2i_r1", retrieval), ("nocaps_CIDEr", inside), ("exact_match", inside))
        for name, mean in means.items()
        for seed in range(5)
    ]
    return pd.DataFrame(lines)


def test_the_race_is_judged_by_pairs_of_seeds():
    rng = np.random.default_rng(0)
    retrieval = {"clip": 10.0, "siglip": 9.0, "veclip": 10.0, "sentences": 11.0, "clips": 12.0}
    found = judge_claims.judge_race(race_lines(rng, retrieval, retrieval | {"caption_only": 8.0}))
    verdicts = {row[""]: (row["verdict"], float(row["estimate"].split()[0])) for _, row in found.iterrows()}
    assert verdicts["clips − clip, retrieval"] == ("reproduced", pytest.approx(2.0, abs=0.2))
    assert verdicts["sentences − veclip, retrieval"][0] == "reproduced"
    assert verdicts["veclip − clip, retrieval"][0] == "inconclusive"
    assert verdicts["caption_only − clip, LLaVA"] == ("contradicted", pytest.approx(-2.0, abs=0.2))
    assert verdicts["Spearman's correlation of the orders"][0] == "contradicted"
    opposed = {name: 20 - value for name, value in retrieval.items()} | {"caption_only": 8.0}
    found = judge_claims.judge_race(race_lines(rng, retrieval, opposed)).iloc[-1]
    assert (found["verdict"], float(found["estimate"].split()[0]) < -0.8) == ("reproduced", True)
    noise = dict.fromkeys([*retrieval, "caption_only"], 8.0)
    assert judge_claims.judge_race(race_lines(rng, retrieval, noise)).iloc[-1]["verdict"].startswith("not tested")
    lines = race_lines(np.random.default_rng(1), retrieval, opposed)
    pairs = lines.query("metric == 't2i_r1'").pivot_table("value", "encoder", "seed")
    interval = scipy.stats.ttest_rel(pairs.loc["clips"], pairs.loc["clip"]).confidence_interval(0.95)
    estimate = judge_claims.judge_race(lines).query("claim == 'E3'")["estimate"].iloc[0]
    assert estimate.endswith(f"[{interval.low:+.1f}, {interval.high:+.1f}]")


def test_the_figure_of_the_claims_has_the_estimates_of_the_page():
    pages = Path(__file__).parents[2] / "docs"
    drawn = html.unescape((pages / "claims.svg").read_text(encoding="utf-8"))
    page = (pages / "evidence.md").read_text(encoding="utf-8").replace("−", "-")
    for name, text in judge_claims.SHOWN.items():
        stated = re.search(rf"^\| {name} \| .*? \| ([-+][\d.]+ \[[^]]+\]) \| ", page, re.MULTILINE)
        assert stated
        assert f"{text} {stated[1]}, " in drawn, name
