"""docs/evidence.md: claims are judged by their criteria, tables are inserted, equal compute is counted."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from script_modules import SCRIPTS, load_script
from torch.utils.flop_counter import FlopCounterMode

from clips.method.clips_model import build_model
from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """A study's output: three seeds of four encoders, of which clips is surely above clip, and surely below veclip."""
    scores = {
        "scenes.clip": (0.03, 0.04, 0.05),
        "scenes.multi_positive": (0.06, 0.09, 0.07),
        "scenes.clips": (0.07, 0.08, 0.09),
        "scenes.veclip_compute": (0.12, 0.13, 0.14),
    }
    for name, values in scores.items():
        for seed, value in enumerate(values, start=4):
            put_score(tmp_path, f"{name}-s{seed}", "scenes", "t2i_r1", value)
    return tmp_path


def put_score(study: Path, row: str, benchmark: str, metric: str, value: float) -> None:
    result = {"model_name": row, "benchmark": benchmark, "status": "ok", "metrics": {metric: {"value": value}}}
    (study / "results" / row).mkdir(parents=True, exist_ok=True)
    (study / "results" / row / f"{benchmark}.json").write_text(json.dumps(result))


def run_judge(*studies: Path | str) -> subprocess.CompletedProcess[str]:
    words = ["judge_claims.py", *map(str, studies)]
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "argv", words)
        status = load_script("judge_claims.py").main()  # a process for each would import SciPy again
    return subprocess.CompletedProcess(words, status, output.getvalue(), errors.getvalue())


def judged(*studies: Path | str) -> list[str]:
    done = run_judge(*studies)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_two_studies_with_the_same_row_are_not_judged_together(evidence: Path, tmp_path: Path) -> None:
    put_score(tmp_path / "again", "scenes.clip-s9", "scenes", "t2i_r1", 0.5)
    done = run_judge(evidence, tmp_path / "again")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path / 'again'}: an earlier source has scenes.clip, too; judge them apart\n"


def test_seeds_that_ran_at_different_times_are_judged_together(tmp_path: Path) -> None:
    """Four seeds of one study in two outputs; the first output is gone but for its CSV."""
    names = ("ablation", "ablation", "objectives")
    first, second, other = folders = [tmp_path / each for each in ("first", "second", "other")]
    for folder, name, seeds in zip(folders, names, ((0, 1), (2, 3), (4, 5)), strict=True):
        for seed in seeds:
            put_score(folder, f"scenes.clip-s{seed}", "scenes", "t2i_r1", 0.03 + seed / 100)
            put_score(folder, f"scenes.clips-s{seed}", "scenes", "t2i_r1", 0.07 + seed / 70)
        (folder / "study.json").write_text(json.dumps({"name": name, "git": {"commit": "0123456789ab"}}))
    (expected,) = [line for line in judged(second, first) if line.startswith("| C1 |")]
    assert "| 4 | reproduced |" in expected
    table = tmp_path / "scores.csv"
    judged(first, "--save", table)
    lines = table.read_text().splitlines()
    assert lines[0] == "study,commit,encoder,seed,benchmark,metric,value"
    assert lines[1] == "ablation,01234567,scenes.clip,0,retrieval,t2i_r1,3.0"
    assert len(lines) == 5
    shutil.rmtree(first)
    assert expected in judged(second, table, "--save", table)
    assert expected in judged(table)
    for source, message in (
        (second, f"{second}: an earlier source has seed 2 of scenes.clip, too\n"),
        (other, f"{other}: an earlier source has scenes.clip, scenes.clips, too; judge them apart\n"),
        (tmp_path / "none", f"{tmp_path / 'none'}: expected the output of a study, with results/\n"),
    ):
        done = run_judge(table, source)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    table.write_text(f"{lines[0]}\nablation,,scenes.clip,zero,retrieval,t2i_r1,3\n")
    assert f"{table} line 2: expected a line of --save, got 'ablation,,scenes.clip,zero," in run_judge(table).stderr
    put_score(second, "scenes.clip-s2", "others", "t2i_r1", 0.1)
    assert run_judge(second).stderr == f"{second}: expected one t2i_r1 of scenes.clip with seed 2, got 2\n"
    table.write_text("study,seed\n")
    done = run_judge(table, "--save", table)
    assert (done.returncode, table.read_text()) == (2, "study,seed\n")
    assert "expected the columns study, commit, encoder, seed, benchmark, metric, value" in done.stderr


def test_an_interval_on_one_side_of_zero_decides(evidence: Path) -> None:
    lines = judged(evidence)
    assert "| C1 | scenes | clips − clip | +4.0 [+4.0, +4.0] | 3 | reproduced |" in lines
    assert "| C2 | scenes | clips − veclip_compute | -5.0 [-5.0, -5.0] | 3 | contradicted |" in lines
    (between,) = [line for line in lines if line.startswith("| B3 |")]
    assert between.endswith("| 3 | not significant |")
    assert "+0.7 [" in between


def test_the_figure_of_the_ablation_is_drawn_from_results(evidence: Path, tmp_path: Path) -> None:
    words = [sys.executable, SCRIPTS / "draw_ablation.py"]
    subprocess.run([*words, evidence, tmp_path / "figure.svg"], check=True)
    svg = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in svg for text in ("clip", "clips", "veclip", "scenes, like an MLLM's"))
    done = subprocess.run([*words, tmp_path / "none", tmp_path / "x.svg"], capture_output=True, text=True, check=False)
    assert (done.returncode, "expected the output of the study ablation" in done.stderr) == (2, True)


def test_lengths_are_compared_over_the_strategies_that_both_have(tmp_path: Path) -> None:
    scores = {"truncate.8": 0.03, "truncate.32": 0.05, "random.32": 0.40}
    for name, value in scores.items():
        for seed in (1, 2, 3):
            put_score(tmp_path, f"coco.{name}-s{seed}", "coco_mini", "t2i_r1", value)
    (line,) = [line for line in judged(tmp_path) if line.startswith("| A4 |")]
    assert line == "| A4 | coco | 8 tokens − 32, mean of 1 strategies | -2.0 [-2.0, -2.0] | 3 | contradicted |"


RACES = [
    ("race", "scenes", "retrieval", "tiny", {"pope": "pope_accuracy", "gqa": "exact_match"}),
    ("race_photos", "photos", "flickr8k", "small", {"captions": "nocaps_CIDEr", "cocoqa": "exact_match"}),
]


@pytest.mark.parametrize(("study", "dataset", "retrieval", "llm", "llava"), RACES)
def test_a_race_is_judged_for_retrieval_and_inside_llavas(
    study: str, dataset: str, retrieval: str, llm: str, llava: dict[str, str], tmp_path: Path
) -> None:
    """In the LLaVAs the order is the reverse of that for retrieval; caption_only has no retrieval."""
    scores = {"clip": 10, "siglip": 20, "veclip": 30, "sentences": 40, "clips": 50}
    for seed in (1, 2, 3):
        for place, name in enumerate([*scores, "caption_only"]):
            if name in scores:
                put_score(tmp_path, f"{name}-s{seed}", retrieval, "t2i_r1", (scores[name] + seed) / 100)
            for number, (benchmark, metric) in enumerate(llava.items()):  # their mean counts
                value = 60 - 5 * place + seed * (place % 2) + 8 * number
                put_score(tmp_path, f"{name}-{llm}-s{seed}", benchmark, metric, value / 100)
    assert not any(line.startswith("| D") for line in judged(tmp_path))  # of another study
    (tmp_path / "study.json").write_text(json.dumps({"name": study}))
    lines = judged(tmp_path)
    assert f"| D3 | {dataset} | clips − sentences | +10.0 [+10.0, +10.0] | 3 | reproduced |" in lines
    assert f"| D4 | {dataset} | clips − clip, inside a LLaVA | -20.0 [-20.0, -20.0] | 3 | contradicted |" in lines
    (captions,) = [line for line in lines if line.startswith("| D5 |")]
    assert "caption_only − clip, inside a LLaVA | -23.0 [" in captions
    assert f"| D6 | {dataset} | correlation of the orders | -1.00 [-1.00, -1.00] | 3 | reproduced |" in lines
    assert sum(line.startswith("| D1 |") for line in lines) == 4
    ascending = enumerate(("siglip", "clip", "sentences", "veclip", "clips"))
    for seed, (value, name) in itertools.product((1, 2, 3), ascending):
        for benchmark, metric in llava.items():
            put_score(tmp_path, f"{name}-{llm}-s{seed}", benchmark, metric, value / 10)
    # Then one of two metrics is no mean of both.
    (tmp_path / "results" / f"caption_only-{llm}-s3" / f"{[*llava][1]}.json").unlink()
    lines = judged(tmp_path)
    assert f"| D6 | {dataset} | correlation of the orders | +0.80 [+0.80, +0.80] | 3 | not significant |" in lines
    assert [line.split(" | ")[4] for line in lines if line.startswith("| D5 |")] == ["2"]
    assert f"| D3 | {dataset} | all |  |  | reproduced |" in lines
    put_score(tmp_path, "veclip-s3", retrieval, "t2i_r1", 0.9)  # one comparison, not all, becomes insignificant
    assert f"| D1 | {dataset} | all |  |  | not significant |" in judged(tmp_path)
    for seed in (1, 2, 3):
        put_score(tmp_path, f"siglip-s{seed}", retrieval, "t2i_r1", 0.9 + seed / 100)
    assert f"| D3 | {dataset} | all |  |  | contradicted |" in judged(tmp_path)


def test_tables_of_reports_replace_those_of_documents(tmp_path: Path) -> None:
    script = SCRIPTS / "insert_tables.py"
    (tmp_path / "table.md").write_text(
        "# Title\n\n| model   |   R@1 |\n|:--------|------:|\n| clip    |  12.1 |\n\n| other |\n"
    )
    text = "before\n<!-- table: {} -->\n| old |\n| --- |\n| 1 |\n\nafter\n| own |\n"
    document = tmp_path / "page.md"
    document.write_text(text.format("table.md") + text.format("missing.md"))
    done = subprocess.run([sys.executable, script, "page.md"], cwd=tmp_path, capture_output=True, text=True, check=True)
    inserted = "before\n<!-- table: table.md -->\n| model | R@1 |\n| :--- | ---: |\n| clip | 12.1 |\n\nafter\n| own |\n"
    assert document.read_text() == inserted + text.format("missing.md")
    assert done.stdout == "page.md: missing.md does not exist here, so its table is unchanged\n"
    (tmp_path / "table.md").write_text("no table\n")
    broken = subprocess.run(
        [sys.executable, script, "page.md"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert broken.returncode == 2
    assert broken.stderr.splitlines()[-1] == "table.md: no table"
    assert document.read_text() == inserted + text.format("missing.md")


def test_a_table_below_a_heading_is_found_by_its_anchor(tmp_path: Path) -> None:
    script = SCRIPTS / "insert_tables.py"
    (tmp_path / "report.md").write_text(
        "| first |\n\n# Main\n| main |\n\n## Predictors of MLLM scores\n\n| ρ |\n\n| second |\n\n## Other\n| other |\n"
    )
    document = tmp_path / "page.md"
    document.write_text("<!-- table: report.md#predictors-of-mllm-scores -->\n| old |\n")
    subprocess.run([sys.executable, script, document], cwd=tmp_path, check=True)
    assert document.read_text() == "<!-- table: report.md#predictors-of-mllm-scores -->\n| ρ |\n"
    document.write_text("<!-- table: report.md#costs -->\n| old |\n")
    done = subprocess.run([sys.executable, script, document], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "report.md: no table below a heading #costs\n")
    assert document.read_text() == "<!-- table: report.md#costs -->\n| old |\n"


EQUAL_COMPUTE_STUDY = """
name: equal
baseline: clip
data:
  train: {split: train, num_scenes: 64, image_size: 64}
  test: {split: test, num_scenes: 8, image_size: 64}
defaults:
  encoder:
    model: {architecture: clips-rn-tiny}
    data: {sources: [{path: $data/train}], augment: {crop_scale_min: 1.0}}
    recipe: {captioner: {num_layers: 1, max_length: 64}}
    global_batch_size: 32
    max_steps: 10
encoders:
  clip: {recipe: {name: clip}}
  clip_small: {recipe: {name: clip}, global_batch_size: 16}
  clips: {recipe: {name: clips}}
benchmarks:
  retrieval: {data: $data/test}
"""


def test_equal_compute_is_counted_from_the_models_own_steps(tmp_path: Path) -> None:
    (tmp_path / "equal.yaml").write_text(EQUAL_COMPUTE_STUDY)
    script = SCRIPTS / "training_flops.py"
    words = [sys.executable, script, "equal.yaml", "--like", "clips"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in done.stdout.splitlines()[-3:]}
    assert set(rows) == {"clip", "clip_small", "clips"}
    # half the batch costs half a step; clips has a second text and a captioner
    assert rows["clip_small"][2] == pytest.approx(rows["clip"][2] / 2, rel=0.02)
    assert rows["clips"][3] == 10
    assert rows["clip"][3] == pytest.approx(10 * rows["clips"][2] / rows["clip"][2], abs=1)
    assert rows["clip"][3] > 20

    # torch's own counter; of the last text layer this suite computes the class token only
    clip = build_model(ModelConfig(architecture="clips-rn-tiny"), RecipeConfig(name="clip"), seed=0).clip
    with FlopCounterMode(display=False) as image_tower:
        clip.encode_image(torch.rand(32, 3, 64, 64)).sum().backward()
    with FlopCounterMode(display=False) as text_tower:
        clip.encode_text(torch.randint(1, 100, (32, clip.context_length))).sum().backward()
    image, text = (counter.get_total_flops() / 1e9 for counter in (image_tower, text_tower))
    assert image < rows["clip"][2] < image + text
