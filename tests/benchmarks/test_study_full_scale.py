"""The paper's LLaVA table at full scale, run with tiny models of its classes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_world
import bridge_world
import pytest
import transformers
import yaml

from benchmarks.study.schema import read_study
from benchmarks.study.steps import build_plan

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "scripts/studies/paper_llava.yaml"
EIGHT = {"mme", "mmmu_val", "mmvet", "gqa", "chartqa", "pope", "nocaps_val", "textvqa_val"}  # as the paper prints


@pytest.mark.slow
def test_it_runs_in_miniature(tmp_path):
    file = miniature(tmp_path)
    words = [sys.executable, "-m", "benchmarks.cli", "study", "run", str(file)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=3000, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (tmp_path / "out" / "report" / "index.html").stat()
    rows = build_plan(read_study(file)).rows
    assert [row.name for row in rows] == ["clip", "clips"]
    for row in rows:
        assert set(row.cells) == EIGHT
        for cell in row.cells.values():
            result = json.loads((tmp_path / "out" / cell.result).read_text(encoding="utf-8"))
            assert result["status"] == "ok"
            assert result["metrics"] or "judge" in str(result["missing_metrics"])


def miniature(folder: Path) -> Path:
    """Write the study with all rows and settings, but next to nothing to compute."""
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    study |= {"output": str(folder / "out"), "jobs": 2, "threads": 1}
    vit = {**bridge_world.VIT, "text_cfg": {**bridge_world.VIT["text_cfg"], "context_length": 77, "vocab_size": 49408}}
    bridge_world.make_encoder(folder / "clips", vit)
    study["encoders"] = {"clip": save_clip(folder / "clip"), "clips": str(folder / "clips")}
    study["llms"] = {"llama3": str(bridge_world.make_llm(folder / "llama3", context=512))}
    talk = bridge_world.make_talk(folder / "talk", samples=4)
    rows = json.loads((talk / "talk.json").read_text(encoding="utf-8"))
    captions = [{**row, "conversations": row["conversations"][:2]} for row in rows]
    (talk / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    hub = bench_world.write_hub(folder / "hub", pictures=2)
    write_mmvet(hub)
    study["paths"] = {"playground": str(talk), "mllm": str(hub)}
    llava = study["defaults"]["llava"]
    llava |= {"chat_template": "auto", "precision": "fp32", "num_workers": 0, "distributed": {"num_processes": 1}}
    for stage, name in (("align", "captions"), ("instruct", "talk")):
        data = {**llava[stage]["data"][0], "path": f"$playground/{name}.json", "image_root": "$playground"}
        sizes = {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 1, "max_length": 512}
        llava[stage] |= {"data": [data], **sizes}
    study["defaults"]["benchmark"]["max_new_tokens"] = 2
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return file


def save_clip(directory: Path) -> str:
    """A random tower of OpenAI's class, with its preprocessor."""
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    config = transformers.CLIPVisionConfig(**small, num_attention_heads=2, image_size=32, patch_size=8)
    transformers.CLIPVisionModel(config).save_pretrained(directory)
    size = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(directory)
    return f"transformers:{directory}"


def write_mmvet(hub: Path) -> None:
    """MM-Vet's columns, two questions."""
    columns = {
        "question_id": ["v1_0", "v1_1"],
        "image": [bench_world.draw_image(0), bench_world.draw_image(1)],
        "question": ["What color is it?"] * 2,
        "answer": [bench_world.color(0), bench_world.color(1)],
        "image_source": ["VQAv2"] * 2,
        "capability": [["rec"]] * 2,
    }
    bench_world.write_parquet(hub / bench_world.HUB / "MMVet/data/test-00000-of-00001.parquet", columns)
