"""CONTRIBUTING's examples apply to the tree as it is, and what they add works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "tests/examples").glob("*.diff"))
USES = {
    "clips/data/formats/captions.py": """
        import json
        from pathlib import Path
        import clips_world
        from clips.data.formats import DatasetSpec, detect, read_dataset
        from clips.data.sources import SourceConfig, open_source
        rows = [{"image_id": str(number), "caption_str": f"the word {number}"} for number in (0, 1)]
        Path("TextCaps_0.1_val.json").write_text(json.dumps({"data": rows}))
        Path("train_images").mkdir()
        for number in (0, 1):
            Path(f"train_images/{number}.jpg").write_bytes(clips_world.draw_image(number, kind="jpg"))
        spec = DatasetSpec(path="TextCaps_0.1_val.json")
        assert detect(spec, "captions") == "textcaps"
        assert [record.captions[0][-1] for record in read_dataset(spec, "captions").records] == ["0", "1"]
        sample = open_source(SourceConfig(path=spec.path, format="textcaps")).read(1, clips_world.rng())
        assert (sample.web, sample.image) == ("the word 1", clips_world.draw_image(1, kind="jpg")), sample
    """,
    "clips/method/recipes.py": """
        import numpy as np
        from clips.method.recipes import Recipe, RecipeConfig
        from clips.model.tokenizer import ClipsTokenizer
        recipe = Recipe(RecipeConfig(name="two_blocks", caption_tokens=4))
        rng = np.random.default_rng(0)
        texts = recipe.prepare("one two three four five six", "a b c d e f. g h i.", rng, ClipsTokenizer())
        assert set(texts) == {"web", "partial"}, texts
        assert all(2 < int((row != 0).sum()) < 8 for row in texts.values()), texts
    """,
    "clips/method/clips_model.py": """
        import clips_world, json
        from pathlib import Path
        from clips.core.identity import identity
        from clips.train import train
        from clips.training.train_config import EncoderTrainConfig
        shards = clips_world.write_shards(Path("shards"))
        config = clips_world.train_config(shards, Path("out"), recipe={"name": "clip", "alignment_loss_weight": 0.5})
        train(config)
        entries = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
        assert all(0 < entry["alignment_loss"] < 4 for entry in entries), entries
        contrast_free = clips_world.train_config(
            shards, Path("none"), recipe={"name": "caption_only", "alignment_loss_weight": 0.5})
        train(contrast_free)
        plain = clips_world.train_config(shards, Path("plain"), recipe={"name": "clip"})
        recorded = dict(identity("clips train", plain).values)
        del recorded["recipe.alignment_loss_weight"]  # a run of before
        assert identity("clips train", plain).difference(recorded) is None
        assert identity("clips train", config).difference(recorded).startswith("recipe.alignment_loss_weight is 0.0")
    """,
    "clips/method/optimizer.py": """
        from clips.method.optimizer import OptimizerConfig, scheduled_lr
        from clips.typed_data import from_plain
        config = from_plain(OptimizerConfig, {"schedule": "quadratic", "learning_rate": 1.0, "warmup_ratio": 0.0})
        assert [scheduled_lr(step, 4, config, 8) for step in range(4)] == [1.0, 0.5625, 0.25, 0.0625]
    """,
    "llava_bridge/encoders/__init__.py": """
        import torch
        from llava_bridge.encoders import build_tower, load_encoder
        encoder = load_encoder("torchvision:resnet18", 64)
        tower = build_tower(encoder.source, encoder.architecture)
        tower.load_state_dict(dict(encoder.weights))
        (state,) = tower.eval().states(torch.zeros(2, 3, 64, 64), 0)
        assert state.shape == (2, 4, 512), state.shape
    """,
    "llava_bridge/encoders/transformers_source.py": """
        import torch, transformers
        from llava_bridge.encoders import build_tower, load_encoder
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = transformers.ViTMSNModel(transformers.ViTMSNConfig(**sizes, image_size=32, patch_size=8)).eval()
        model.save_pretrained("msn")
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained("msn")
        encoder = load_encoder("transformers:msn", None)
        tower = build_tower(encoder.source, encoder.architecture)
        tower.load_state_dict(dict(encoder.weights))
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            states, expected = list(tower.eval().states(pixels, 2)), model(pixels, output_hidden_states=True)
        assert len(states) == 3 and tower.class_token
        torch.testing.assert_close(states, [*expected.hidden_states[:-1], expected.last_hidden_state])
    """,
    "llava_bridge/projectors/__init__.py": """
        import torch
        from llava_bridge.projectors import ProjectorConfig, ProjectorShape, build_projector, num_output_tokens
        config, shape = ProjectorConfig(type="mean"), ProjectorShape(patches=16, width=32, llm=24)
        assert num_output_tokens(config, shape) == 1
        assert build_projector(config, shape)(torch.randn(3, 16, 32)).shape == (3, 1, 24)
    """,
    "benchmarks/tasks/registry.py": """
        from pathlib import Path
        import bench_world
        from benchmarks.cli import COMMANDS
        from benchmarks.results.results import read_result
        from clips.commandline.commands import dispatch
        bench_world.write_shards(Path("shards"), 4)
        words = ["run", "--model_name", "t", "--output", "r", "--encoder", "timm:resnet10t@random", "--device", "cpu"]
        words += ["--benchmarks", "[{name: mirror, data: shards, axis: horizontal}]"]
        assert dispatch("clips-bench", "", COMMANDS, words) == 0
        result = read_result(Path("r/t/mirror.json"))
        assert result.status == "ok" and result.metrics["accuracy"].n == 4, result
        assert (result.protocol["images"], result.protocol["axis"]) == (4, "horizontal")
    """,
    "benchmarks/tasks/lmms_tasks.csv": """
        from pathlib import Path
        import bench_world
        from benchmarks.results.results import read_result
        from benchmarks.tasks.mllm.score_answers import ScoreConfig, run_score
        rows = range(4)
        columns = {"question_id": [f"{row}.jpg" for row in rows], "question": ["what is this?"] * 4,
                   "image": [bench_world.draw_image(row) for row in rows], "answers": [["cup"] * 10] * 4}
        bench_world.write_parquet(Path("hub/lmms-lab-encoder/VizWiz-VQA/data/val-00000-of-00001.parquet"), columns)
        said = [{"doc_id": row, "answer": "cup" if row else "a dog"} for row in rows]
        answers = str(bench_world.write_lines(Path("answers.jsonl"), said))
        run_score(ScoreConfig(task="vizwiz_vqa_val", answers=answers, data="hub", output="r", model_name="them",
                              partial=True))
        result = read_result(Path("r/them/vizwiz_vqa_val.json"))
        assert result.metrics["exact_match"].value == 0.75 and result.metrics["exact_match"].ci_low > 0.1, result
    """,
    "benchmarks/report/measures.py": """
        from pathlib import Path
        import report_material
        from benchmarks.report.measures import score_frame
        from benchmarks.report.report import build_report
        report = build_report(report_material.put_results(Path("results")))
        assert {*score_frame(report.table)["images"]} == {60}
        for name in ("html", "markdown"):
            assert "(60 images)" in report_material.rendered(report, name), name
    """,
    "benchmarks/report/page.py": """
        from pathlib import Path
        import report_material
        from benchmarks.report.report import build_report
        from benchmarks.report.page import render_page
        page = render_page(build_report(report_material.put_results(Path("results"))))
        assert 'href="#protocols"' in page and "<dt>clips</dt>" in page
    """,
}
"""A file that an example changes → a little program that uses its additions."""


def files(example: Path) -> list[str]:
    return re.findall(r"^\+\+\+ b/(\S+)", example.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages to which all examples are applied."""
    folder = tmp_path_factory.mktemp("changed")
    for package in ("clips", "llava_bridge", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for example in EXAMPLES:
        command = ["git", "apply", "--recount", "-C1", str(example)]
        alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}  # it is no part of a repository above
        applied = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=alone, check=False)
        assert applied.returncode == 0, f"{example}: {applied.stderr}"
    return folder


def test_each_example_is_of_one_file_or_two_and_applies(changed: Path):
    assert {name for example in EXAMPLES for name in USES if name in files(example)} == USES.keys()
    assert len(EXAMPLES) == len(USES)
    linked = re.findall(r"\(tests/examples/(\w+\.diff)\)", (ROOT / "CONTRIBUTING.md").read_text())
    assert sorted(linked) == [example.name for example in EXAMPLES]
    for example in EXAMPLES:
        assert 1 <= len(files(example)) <= 2, example
        for file in files(example):
            assert (changed / file).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
def test_additions_of_an_example_work(name: str, changed: Path, tmp_path: Path):
    code = "\n".join(line.removeprefix("        ") for line in USES[name].splitlines())
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{changed}{os.pathsep}{os.environ['PYTHONPATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
def test_the_examples_keep_the_style(changed: Path):
    touched = [file for example in EXAMPLES for file in files(example) if file.endswith(".py")]
    shutil.copy(ROOT / "pyproject.toml", changed)
    for words in (["check"], ["format", "--check"]):
        ended = subprocess.run(
            [sys.executable, "-m", "ruff", *words, *touched], cwd=changed, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout
