"""Published recipes as files: each is complete, each number says where it is from; miniatures of them train."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import bridge_world
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml

from clips.commandline.parsing import parse_config
from clips.typed_data import to_yaml
from llava_bridge import answer, load_llava
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training import train as training
from llava_bridge.training.inputs import resolve_inputs
from llava_bridge.training.loss import LlavaLoss
from llava_bridge.training.setup import setup_stage
from llava_bridge.training.train_config import LlavaTrainConfig

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "configs" / "llava"
FILES = sorted(FOLDER.glob("*.yaml"))
STATED = {"data", "num_epochs", "global_batch_size", "micro_batch_size", "learning_rate", "warmup_ratio"}
STATED |= {"weight_decay", "max_length"}
ALIGN_IS_CHAT = {"llava-onevision-1.5-8b", "llava-onevision-2-8b", "nanovlm-460m"}  # the last has no stage of captions


def recipe(path: Path) -> LlavaTrainConfig:
    return parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test")  # type: ignore[return-value]


LLAVA_1_5 = "llava-1.5-vicuna-7b"
OF_LLAVA_1_5 = (("align", "instruct"), "mlp2x_gelu", (256, 128), 2e-5)
STATED_VALUES: dict[str, Any] = {  # stages, projector, batches, learning rate of the last stage
    **dict.fromkeys(["llava-1.5-vicuna-7b", "llava-1.5-llama-3-8b", "openvision", "clips"], OF_LLAVA_1_5),
    **dict.fromkeys(["llava-next", "sharegpt4v-7b"], OF_LLAVA_1_5),
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


PARTS = {  # recipe: classes of encoder and LLM
    "llava-1.5-vicuna-7b": (transformers.CLIPVisionConfig, "llama"),
    "llava-next-qwen2.5-7b": (transformers.CLIPVisionConfig, "qwen2"),
    "llava-onevision-1.5-8b": (transformers.MLCDVisionConfig, "qwen3"),
    "llava-onevision-2-8b": (transformers.MLCDVisionConfig, "qwen3"),
    "onevision-encoder-qwen3-4b": (transformers.Siglip2VisionConfig, "qwen3"),
    "nanovlm-460m": (transformers.SiglipVisionConfig, "llama"),
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"patch_size": 8, "image_size": 32}


def make_encoder(folder: Path, config_class: Any) -> str:
    more = {"num_patches": 16} if config_class is transformers.Siglip2VisionConfig else {}
    transformers.AutoModel.from_config(config_class(**VISION, **more)).save_pretrained(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 32, "width": 32}}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"transformers:{folder}"


def make_llm(folder: Path, kind: str, tokenizer_of: Path) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.add_tokens(
        [transformers.AddedToken(mark, special=True, normalized=False) for mark in ("<|im_start|>", "<|im_end|>")]
    )
    own: dict[str, Any] = {**bridge_world.SMALL_LLM, "max_position_embeddings": 512, "vocab_size": len(tokenizer)}
    own |= {"head_dim": 8} if kind == "qwen3" else {"tie_word_embeddings": True} if kind == "llama" else {}
    llm = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **own))
    return str(bridge_world.save(folder, llm, tokenizer))


def write_finevision(folder: Path, talk: Path) -> str:
    """The conversations in FineVision's columns."""
    rows = []
    for row in json.loads((talk / "talk.json").read_text()):
        said = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
        texts = [{"user": user, "assistant": answer} for user, answer in zip(said[::2], said[1::2], strict=True)]
        rows.append({"images": [{"bytes": (talk / row["image"]).read_bytes(), "path": None}], "texts": texts})
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return str(folder)


def miniature(name: str, folder: Path, talk: Path, tokenizer_of: Path) -> LlavaTrainConfig:
    """The recipe with tiny parts of the same classes, one step of each stage and no GPU; the rest is its own."""
    large = recipe(FOLDER / f"{name}.yaml")
    config_class, kind = PARTS[name]
    side = 512 if name.startswith("nano") else 336
    tiles = large.image_grid_pinpoints and [
        [length // side * 32 for length in pair] for pair in large.image_grid_pinpoints
    ]
    captions = [
        {**row, "conversations": row["conversations"][:2]} for row in json.loads((talk / "talk.json").read_text())
    ]
    (folder / "captions.json").write_text(json.dumps(captions))
    paths = {"align": folder / "captions.json", "instruct": talk / "talk.json"}
    stages = {}
    for stage in large.stages:
        source = ConversationSourceConfig(path=str(paths[stage]), image_root=str(talk), missing_images="error")
        if large.stage(stage).data[0].format == "conversations":
            rows = folder / "rows"
            rows.mkdir()
            source = dataclasses.replace(
                source, format="conversations", path=write_finevision(rows, talk), image_root=None
            )
        if name == LLAVA_1_5:
            source = dataclasses.replace(source, repeats=0.5)
        small: dict[str, Any] = {"max_steps": 1, "global_batch_size": 4, "micro_batch_size": 2, "max_length": 400}
        stages[stage] = dataclasses.replace(large.stage(stage), data=[source], **small)
    return dataclasses.replace(
        large,
        output=str(folder / "llava"),
        encoder=make_encoder(folder / "encoder", config_class),
        llm=make_llm(folder / "llm", kind, tokenizer_of),
        image_size=large.image_size and 64,
        image_grid_pinpoints=tiles,
        attn_implementation=None,
        distributed=dataclasses.replace(large.distributed, num_processes=1),
        precision="fp32",
        num_workers=0,
        logging_steps=1,
        **stages,
    )


@pytest.mark.parametrize("name", PARTS)
def test_a_step_of_the_last_stage_learns_what_the_recipe_names(name, tmp_path, bridge_talk, bridge_long_llm):
    config = dataclasses.replace(miniature(name, tmp_path, bridge_talk, bridge_long_llm), stages=["instruct"])
    setup = setup_stage(resolve_inputs(config), "instruct")
    parts = {"projector", "llm"} if name == LLAVA_1_5 else {"vision", "projector", "llm"}
    assert set(config.instruct.trained_parts("instruct")) == parts
    batch = setup.collator([setup.dataset[index] for index in range(2)])
    loss = LlavaLoss(setup.model.requires_grad_(True))(**batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    for part, module in setup.parts.items():
        assert any(value.grad is not None and value.grad.any() for value in module.parameters()), part
    prompt = setup.processor.tokenizer.decode(batch["input_ids"][0])
    begins = {LLAVA_1_5: "<s>A chat between a curious user", "nanovlm-460m": "<|im_start|>user"}
    assert prompt.startswith(begins.get(name, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>"))
    tokens = int((batch["input_ids"][0] == setup.model.config.image_token_id).sum())
    # 40 × 24 pixels. A base image of 16 tokens, and 4 rows of 6 and a newline, without the padding; 8 × 8 patches of 64
    # pixels; a quarter of 16; and, twice in a packed row, a base tile of one token, 2 of 4 tiles and a newline
    expected = {"llava-next-qwen2.5-7b": 16 + 4 * 7, "onevision-encoder-qwen3-4b": 8 * 8, "nanovlm-460m": 2 * (1 + 3)}
    expected[LLAVA_1_5] = 16
    assert tokens == expected.get(name, 4)
    assert ("position_ids" in batch) == (name == "nanovlm-460m")


@pytest.mark.slow
def test_every_recipe_trains_its_stages_and_answers(tmp_path, bridge_talk, bridge_long_llm):
    files = []
    for name in PARTS:
        folder = tmp_path / name
        folder.mkdir()
        files.append(folder / "llava.yaml")
        files[-1].write_text(to_yaml(miniature(name, folder, bridge_talk, bridge_long_llm)))
    printed = bridge_world.trained_alone(*files, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert f"instruct: 8 samples per epoch from {bridge_talk / 'talk.json'} (repeats 0.5)" in printed
    assert "checking all images of" in printed
    for name in PARTS:
        stages = ["instruct"] if name.startswith("nano") else ["align", "instruct"]
        assert bridge_world.metrics(tmp_path / name / "llava", "stage") == stages
        model, processor = load_llava(tmp_path / name / "llava", device="cpu")
        assert model.config.text_config.model_type == PARTS[name][1]
        assert torch.isfinite(torch.tensor(bridge_world.losses(tmp_path / name / "llava"))).all()
        assert len(answer(model, processor, bridge_world.noise((50, 40)), ["What?"], max_new_tokens=3)) == 1


def test_the_first_stage_learns_plain_captions_of_cropped_images(tmp_path, bridge_talk, bridge_long_llm):
    setup = setup_stage(resolve_inputs(miniature(LLAVA_1_5, tmp_path, bridge_talk, bridge_long_llm)), "align")
    item: Any = setup.dataset[0]
    assert setup.processor.tokenizer.decode(item["input_ids"]) in {
        f"<s>{'<image>' * 16}{color}\n" for color in bridge_world.COLORS
    }
    assert setup.collator.image_processor.do_center_crop
    assert setup.processor.image_processor.do_pad  # which the LLaVA keeps
    assert "A chat between a curious user" in setup.processor.chat_template


def test_a_missing_image_is_reported_before_training(tmp_path, bridge_talk, bridge_long_llm, monkeypatch):
    monkeypatch.setattr(training, "start_ranks", lambda *_: pytest.fail("it was started"))
    config = miniature(LLAVA_1_5, tmp_path, bridge_talk, bridge_long_llm)
    rows = json.loads((bridge_talk / "talk.json").read_text())
    rows[3]["image"] = "gone.png"
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    data = dataclasses.replace(config.instruct.data[0], path=str(tmp_path / "talk.json"), repeats=1.0)
    stage = dataclasses.replace(config.instruct, data=[data])
    (tmp_path / "run.yaml").write_text(to_yaml(dataclasses.replace(config, instruct=stage)))
    status, _, printed = bridge_world.run_cli("train", "--config", str(tmp_path / "run.yaml"))
    assert status == 2
    assert "1 of 16 images of" in printed
    assert "gone.png" in printed
    assert not (tmp_path / "llava").exists()
    assert not list(tmp_path.glob(".*"))
