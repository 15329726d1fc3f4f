"""The recipes with which encoders are compared in 2026: each trains, with tiny models of the classes that it names."""

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

from clips.commandline.parsing import parse_config
from clips.typed_data import to_yaml
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.train_config import LlavaTrainConfig

FOLDER = Path(__file__).resolve().parents[1] / "scripts" / "configs" / "llava"
PARTS = {  # recipe: classes of encoder and LLM
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
    large = parse_config(LlavaTrainConfig, ["--config", str(FOLDER / f"{name}.yaml")], prog="test")
    assert large is not None
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
    from llava_bridge.training.loss import LlavaLoss
    from llava_bridge.training.setup import setup_stage

    config = dataclasses.replace(miniature(name, tmp_path, bridge_talk, bridge_long_llm), stages=["instruct"])
    setup = setup_stage(config, "instruct", tmp_path)
    assert set(config.instruct.trained_parts("instruct")) == set(setup.parts) == {"vision", "projector", "llm"}
    batch = setup.collator([setup.dataset[index] for index in range(2)])
    loss = LlavaLoss(setup.model.requires_grad_(True))(**batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    for part, module in setup.parts.items():
        assert any(value.grad is not None and value.grad.any() for value in module.parameters()), part
    prompt = setup.processor.tokenizer.decode(batch["input_ids"][0])
    begin = (
        "<|im_start|>user" if name.startswith("nano") else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>"
    )
    assert prompt.startswith(begin)
    tokens = int((batch["input_ids"][0] == setup.model.config.image_token_id).sum())
    # 40 × 24 pixels. A base image of 16 tokens, and 4 rows of 6 and a newline, without the padding; 8 × 8 patches of 64
    # pixels; a quarter of 16; and, twice in a packed row, a base tile of one token, 2 of 4 tiles and a newline
    expected = {"llava-next-qwen2.5-7b": 16 + 4 * 7, "onevision-encoder-qwen3-4b": 8 * 8, "nanovlm-460m": 2 * (1 + 3)}
    assert tokens == expected.get(name, 4)
    assert ("position_ids" in batch) == (name == "nanovlm-460m")


@pytest.mark.slow
def test_every_recipe_trains_its_stages_and_answers(tmp_path, bridge_talk, bridge_long_llm):
    from llava_bridge import answer, load_llava

    files = []
    for name in PARTS:
        folder = tmp_path / name
        folder.mkdir()
        files.append(folder / "llava.yaml")
        files[-1].write_text(to_yaml(miniature(name, folder, bridge_talk, bridge_long_llm)))
    bridge_world.trained_alone(*files, XDG_CACHE_HOME=str(tmp_path / "cache"))
    for name in PARTS:
        stages = ["instruct"] if name.startswith("nano") else ["align", "instruct"]
        assert bridge_world.metrics(tmp_path / name / "llava", "stage") == stages
        model, processor = load_llava(tmp_path / name / "llava", device="cpu")
        assert model.config.text_config.model_type == PARTS[name][1]
        assert torch.isfinite(torch.tensor(bridge_world.losses(tmp_path / name / "llava"))).all()
        assert len(answer(model, processor, bridge_world.noise((50, 40)), ["What?"], max_new_tokens=3)) == 1
