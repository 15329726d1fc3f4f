"""Published recipes as files: each is complete, each number says where it is from, a miniature of one trains."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import bridge_world
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clips.commandline.parsing import parse_config
from clips.serialization import to_yaml
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.projectors import ProjectorConfig
from llava_bridge.training.train_config import LlavaTrainConfig, StageConfig

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "configs" / "llava"
FILES = sorted(FOLDER.glob("*.yaml"))
STATED = {
    "data",
    "num_epochs",
    "global_batch_size",
    "micro_batch_size",
    "learning_rate",
    "warmup_ratio",
    "weight_decay",
    "max_length",
}


@pytest.fixture(scope="module")
def long_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer knows letters only, with which LLaVA's preamble alone takes some hundred tokens."""
    return bridge_world.make_llm(tmp_path_factory.mktemp("recipes") / "llm", context=400)


def recipe(path: Path) -> LlavaTrainConfig:
    config: LlavaTrainConfig = parse_config(
        LlavaTrainConfig, ["--config", str(path)], prog="llava-bridge train", positional=()
    )
    return config


def test_the_recipes_are_there() -> None:
    assert {path.stem for path in FILES} == {
        "llava-1.5-vicuna-7b",
        "llava-1.5-llama-3-8b",
        "openvision",
        "clips",
        "llava-next",
        "sharegpt4v-7b",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_is_complete(path: Path) -> None:
    """Nothing that decides what comes of it is left to defaults, which may change."""
    config, written = recipe(path), yaml.safe_load(path.read_text())
    assert list(config.stages) == ["align", "instruct"]
    assert {
        "encoder",
        "llm",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "projector",
        "chat_template",
        "image_aspect_ratio",
    } <= set(written)
    assert config.chat_template != "auto"
    assert config.projector == ProjectorConfig(type="mlp2x_gelu")
    for name in config.stages:
        assert set(written[name]) >= STATED, name
        for data in config.stage(name).data:
            assert data.image_folder
            assert data.missing_images == "error"
    assert (config.align.global_batch_size, config.instruct.global_batch_size) == (256, 128)
    assert config.align.chat_template == "plain"
    assert config.instruct.learning_rate == 2e-5
    assert path.name in path.read_text()  # the command that runs it


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_setting_says_where_it_is_from(path: Path) -> None:
    own = {"output", "data", "path", "image_folder", "missing_images", "- path"}
    for line in path.read_text().splitlines():
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
        path=str(tmp_path / "captions.json"), image_folder=str(talk), missing_images="error", weight=0.5
    )
    return dataclasses.replace(
        large,
        output=str(tmp_path / "llava"),
        encoder=str(encoder),
        llm=str(llm),
        launch=dataclasses.replace(large.launch, num_processes=1),
        precision="fp32",
        num_workers=1,
        logging_steps=1,
        align=dataclasses.replace(large.align, data=[align], **tiny),
        instruct=dataclasses.replace(large.instruct, data=[*mixture(tmp_path, talk)], **tiny),
    )


def mixture(tmp_path: Path, talk: Path) -> list[ConversationSourceConfig]:
    """The same talk as LLaVA's JSON, in a table with its pictures, and in a shard."""
    rows = json.loads((talk / "talk.json").read_text())
    table = [
        {"conversations": row["conversations"], "image": {"bytes": (talk / row["image"]).read_bytes(), "path": None}}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "talk.parquet", row_group_size=4)
    with tarfile.open(tmp_path / "talk.tar", "w") as tar:
        for row in rows:
            talked = json.dumps({"conversations": row["conversations"]}).encode()
            for name, content in (("json", talked), ("png", (talk / row["image"]).read_bytes())):
                member = tarfile.TarInfo(f"{row['id']}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return [
        ConversationSourceConfig(path=str(talk / "talk.json"), image_folder=str(talk), missing_images="error"),
        ConversationSourceConfig(path=str(tmp_path / "talk.parquet"), format="conversations", weight=1.5),
        ConversationSourceConfig(path=str(tmp_path / "talk.tar"), format="webdataset", weight=0.25),
    ]


def train(config: LlavaTrainConfig, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "llava.yaml").write_text(to_yaml(config))
    return bridge_world.run_python(
        "-m", "llava_bridge", "train", "--config", str(tmp_path / "llava.yaml"), XDG_CACHE_HOME=str(tmp_path / "cache")
    )


def test_the_first_stage_learns_plain_captions_of_cropped_pictures(
    tmp_path: Path, bridge_encoder: Path, long_llm: Path, bridge_talk: Path
) -> None:
    from llava_bridge.training.setup import setup_stage

    setup = setup_stage(miniature(tmp_path, bridge_encoder, long_llm, bridge_talk), "align", tmp_path)
    item: Any = setup.dataset[0]
    assert setup.processor.tokenizer.decode(item["input_ids"]) in {
        f"<s>{'<image>' * 16}{color}\n" for color in bridge_world.COLORS
    }
    assert setup.collator.image_processor.do_center_crop
    assert setup.processor.image_processor.do_pad  # which the LLaVA keeps
    assert "A chat between a curious user" in setup.processor.chat_template


@pytest.mark.slow
def test_a_miniature_of_llava_1_5_trains(
    tmp_path: Path, bridge_encoder: Path, long_llm: Path, bridge_talk: Path
) -> None:
    config = miniature(tmp_path, bridge_encoder, long_llm, bridge_talk)
    run = train(config, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "align: 8 samples an epoch from" in run.stderr
    assert "instruct: 24 samples an epoch from" in run.stderr
    assert "instruct: 4 samples an epoch from" in run.stderr
    assert "looking for all pictures of" in run.stderr
    lines = [json.loads(line) for line in (tmp_path / "llava" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage in ("align", "instruct") for step in (1, 2, 3)
    ]
    shown: dict[str, Any] = json.loads((tmp_path / "llava" / "processor_config.json").read_text())["image_processor"]
    assert shown["image_processor_type"].startswith("LlavaImageProcessor")
    assert shown["do_pad"]
    from llava_bridge import load_llava

    _, processor = load_llava(tmp_path / "llava")
    assert "A chat between a curious user" in processor.chat_template
    assert processor.image_processor.do_pad


@pytest.mark.slow
def test_a_missing_picture_is_told_before_anything_is_trained(
    tmp_path: Path, bridge_encoder: Path, long_llm: Path, bridge_talk: Path
) -> None:
    config = miniature(tmp_path, bridge_encoder, long_llm, bridge_talk)
    rows = json.loads((bridge_talk / "talk.json").read_text())
    rows[3]["image"] = "gone.png"
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    data = dataclasses.replace(config.instruct.data[0], path=str(tmp_path / "talk.json"))
    stage: StageConfig = dataclasses.replace(config.instruct, data=[data])
    run = train(dataclasses.replace(config, instruct=stage), tmp_path)
    assert run.returncode == 2
    assert "1 of 16 pictures of" in run.stderr
    assert "gone.png" in run.stderr
    assert "frozen" not in run.stderr  # no stage has begun
    assert sorted(path.name for path in tmp_path.iterdir() if "llava" in path.name) == ["llava.yaml"]
