"""Published recipes as files: each is complete, each number says where it is from, a miniature of one trains."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import yaml

from clips.commandline.parsing import parse_config
from clips.typed_data import to_yaml
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.train_config import LlavaTrainConfig, StageConfig

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "configs" / "llava"
FILES = sorted(FOLDER.glob("*.yaml"))
STATED = {"data", "num_epochs", "global_batch_size", "micro_batch_size", "learning_rate", "warmup_ratio"}
STATED |= {"weight_decay", "max_length"}
ALIGN_IS_CHAT = {"llava-onevision-1.5-8b", "llava-onevision-2-8b", "nanovlm-460m"}  # the last has no stage of captions


def recipe(path: Path) -> LlavaTrainConfig:
    return parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test")  # type: ignore[return-value]


LLAVA_1_5 = (("align", "instruct"), "mlp2x_gelu", (256, 128), 2e-5)
STATED_VALUES: dict[str, Any] = {  # stages, projector, batches, learning rate of the last stage
    **dict.fromkeys(["llava-1.5-vicuna-7b", "llava-1.5-llama-3-8b", "openvision", "clips"], LLAVA_1_5),
    **dict.fromkeys(["llava-next", "sharegpt4v-7b"], LLAVA_1_5),
    "llava-next-qwen2.5-7b": (("align", "instruct"), "mlp2x_gelu", (128, 128), 1e-5),
    "llava-onevision-1.5-8b": (("align", "instruct"), "patch_merger", (128, 128), 1e-5),
    "llava-onevision-2-8b": (("align", "instruct"), "patch_merger", (224, 132), 1e-5),
    "onevision-encoder-qwen3-4b": (("align", "instruct"), "mlp2x_gelu", (256, 128), 1e-5),
    "nanovlm-460m": (("instruct",), "pixel_shuffle_linear", (128,), 5e-5),
}


def test_the_recipes_are_there() -> None:
    assert {path.stem for path in FILES} == set(STATED_VALUES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_is_complete(path: Path) -> None:
    """Nothing that decides what comes of it is left to defaults, which may change."""
    config, written = recipe(path), yaml.safe_load(path.read_text())
    stages, projector, batches, rate = STATED_VALUES[path.stem]
    assert tuple(config.stages) == stages
    features = {"vision_feature_layer", "vision_feature_select_strategy", "image_aspect_ratio"}
    assert {"encoder", "llm", "projector", "chat_template", *features} <= set(written)
    assert config.chat_template != "auto"
    assert config.projector.type == projector
    for name in config.stages:
        assert set(written[name]) >= STATED - ({"num_epochs"} if "max_steps" in written[name] else set()), name
        for data in config.stage(name).data:
            assert data.image_root
            assert data.missing_images == "error"
    assert tuple(config.stage(name).global_batch_size for name in stages) == batches
    assert config.align.chat_template == (None if path.stem in ALIGN_IS_CHAT else "plain")
    assert config.instruct.learning_rate == rate
    assert path.name in path.read_text()  # the command that runs it
    own = {"output", "data", "path", "image_root", "missing_images", "- path", "format"}
    for line in path.read_text().splitlines():  # every other setting says where it is from
        if not line.startswith("#") and line.split(":")[0].strip() not in own:
            assert "  # " in line, line


def miniature(tmp_path: Path, encoder: Path, llm: Path, talk: Path) -> LlavaTrainConfig:
    """LLaVA-1.5's recipe with tiny parts, few samples, and no GPU: every other setting is the file's own."""
    large = recipe(FOLDER / "llava-1.5-vicuna-7b.yaml")
    rows = json.loads((talk / "talk.json").read_text())
    captions = [{**row, "conversations": row["conversations"][:2]} for row in rows]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    tiny = {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": 3, "max_length": 300}
    align = ConversationSourceConfig(
        path=str(tmp_path / "captions.json"), image_root=str(talk), missing_images="error", repeats=0.5
    )
    mixture = [dataclasses.replace(align, path=str(talk / "talk.json"), repeats=weight) for weight in (1.0, 1.5, 0.25)]
    return dataclasses.replace(
        large,
        output=str(tmp_path / "llava"),
        encoder=str(encoder),
        llm=str(llm),
        distributed=dataclasses.replace(large.distributed, num_processes=1),
        precision="fp32",
        num_workers=1,
        logging_steps=1,
        align=dataclasses.replace(large.align, data=[align], **tiny),
        instruct=dataclasses.replace(large.instruct, data=mixture, **tiny),
    )


def train(config: LlavaTrainConfig, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "llava.yaml").write_text(to_yaml(config))
    return bridge_world.run_python(
        "-m", "llava_bridge", "train", "--config", str(tmp_path / "llava.yaml"), XDG_CACHE_HOME=str(tmp_path / "cache")
    )


def test_the_first_stage_learns_plain_captions_of_cropped_images(
    tmp_path: Path, bridge_encoder: Path, bridge_long_llm: Path, bridge_talk: Path
) -> None:
    from llava_bridge.training.setup import setup_stage

    setup = setup_stage(miniature(tmp_path, bridge_encoder, bridge_long_llm, bridge_talk), "align", tmp_path)
    item: Any = setup.dataset[0]
    assert setup.processor.tokenizer.decode(item["input_ids"]) in {
        f"<s>{'<image>' * 16}{color}\n" for color in bridge_world.COLORS
    }
    assert setup.collator.image_processor.do_center_crop
    assert setup.processor.image_processor.do_pad  # which the LLaVA keeps
    assert "A chat between a curious user" in setup.processor.chat_template


@pytest.mark.slow
def test_a_miniature_of_llava_1_5_trains(tmp_path, bridge_encoder, bridge_long_llm, bridge_talk):
    config = miniature(tmp_path, bridge_encoder, bridge_long_llm, bridge_talk)
    run = train(config, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "align: 8 samples per epoch from" in run.stderr
    assert "instruct: 24 samples per epoch from" in run.stderr
    assert "instruct: 4 samples per epoch from" in run.stderr
    assert "checking all images of" in run.stderr
    steps = [(stage, step) for stage in ("align", "instruct") for step in (1, 2, 3)]
    assert bridge_world.metrics(tmp_path / "llava", "stage", "step") == steps
    shown: dict[str, Any] = json.loads((tmp_path / "llava" / "processor_config.json").read_text())["image_processor"]
    assert shown["image_processor_type"].startswith("LlavaImageProcessor")
    assert shown["do_pad"]
    from llava_bridge import load_llava

    _, processor = load_llava(tmp_path / "llava")
    assert "A chat between a curious user" in processor.chat_template
    assert processor.image_processor.do_pad


@pytest.mark.slow
def test_a_missing_image_is_reported_before_training(tmp_path, bridge_encoder, bridge_long_llm, bridge_talk):
    config = miniature(tmp_path, bridge_encoder, bridge_long_llm, bridge_talk)
    rows = json.loads((bridge_talk / "talk.json").read_text())
    rows[3]["image"] = "gone.png"
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    data = dataclasses.replace(config.instruct.data[0], path=str(tmp_path / "talk.json"))
    stage: StageConfig = dataclasses.replace(config.instruct, data=[data])
    run = train(dataclasses.replace(config, instruct=stage), tmp_path)
    assert run.returncode == 2
    assert "1 of 16 images of" in run.stderr
    assert "gone.png" in run.stderr
    assert "frozen" not in run.stderr  # no stage has begun
    assert sorted(path.name for path in tmp_path.iterdir() if "llava" in path.name) == ["llava.yaml"]
