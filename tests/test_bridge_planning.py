"""Sizes and costs of LLaVAs, against numbers that their authors print."""

from __future__ import annotations

import json

import pytest

from clips.commandline.parsing import parse_config
from clips.errors import UserError
from llava_bridge.planning.model_sizes import (
    UnknownSizeError,
    dual_tower_size,
    known_configs,
    llm_size,
    new_llm_size,
    projector_size,
    vision_size,
)
from llava_bridge.planning.plan import llava_cost, sizes_of, stage_cost
from llava_bridge.projectors import ProjectorConfig
from llava_bridge.training.launch import deepspeed_config
from llava_bridge.training.train_config import LlavaTrainConfig

CLIP = "transformers:openai/clip-vit-large-patch14-336"
VICUNA = "lmsys/vicuna-7b-v1.5"


@pytest.fixture(scope="module")
def clip():
    return vision_size(CLIP)


def test_sizes_are_those_of_the_models_and_of_a_projector_and_two_towers_at_once(clip):
    llm = llm_size(VICUNA)
    assert llm.parameters == 6_738_415_616  # Llama 2's
    assert (clip.parameters, clip.tokens, clip.width) == (303_507_456, 576, 1024)
    assert clip.flops == pytest.approx(2 * 191e9, rel=0.01)  # 191 GMACs by timm's tables
    count, tokens = projector_size(ProjectorConfig(), clip, llm)
    assert (count, tokens) == ((1024 + 1) * 4096 + (4096 + 1) * 4096, 576)
    assert projector_size(ProjectorConfig(type="pool", downsample_factor=2), clip, llm)[1] == 144


def test_a_naflex_towers_size_at_another_resolution_than_its_positions():
    size = vision_size("timm:naflexvit_base_patch16_gap.e300_s576_in1k")
    assert (size.tokens, size.width) == (576, 768)


@pytest.mark.slow
def test_more_sizes_are_those_of_the_models():
    assert llm_size("meta-llama/Meta-Llama-3-8B-Instruct").parameters == 8_030_261_248
    assert vision_size(CLIP, 224).tokens == 256


@pytest.mark.parametrize(
    ("name", "stated"),
    [
        ("vit_large_patch14_clip_224.openai", 175.33),
        pytest.param("ViT-SO400M-14-SigLIP-384", 723.48, marks=pytest.mark.slow),
    ],
)
def test_both_towers_of_released_encoders_take_what_open_clip_states(name, stated):
    """GFLOPs of open_clip's own table of profiles, an image and a text."""
    pair = dual_tower_size(f"hf-hub:timm/{name}")
    assert (pair.image_flops + pair.text_flops) / 1e9 == pytest.approx(stated, abs=0.01)


def test_the_small_llama_is_as_large_as_the_one_that_is_made():
    from llava_bridge.model.small_llama import SmallLlamaConfig, new_llama, train_tokenizer

    config = SmallLlamaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64
    )
    tokenizer = train_tokenizer(["a cat and a dog"] * 20, config)
    made = sum(value.numel() for value in new_llama(config, tokenizer).parameters())
    rows = 2 * 16 * (300 - len(tokenizer))  # words that so short a text does not fill
    assert new_llm_size(config).parameters == made + rows


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"model_type": "nonesuch"}, UserError, r"encoder is a nonesuch; expected one of clip_vision_model"),
        ({"model_type": "bert"}, UserError, r"encoder is a bert; expected one of"),
        ({"model_type": "clip", "vision_config": 3}, UserError, r"encoder: expected the config of a clip \("),
        ({"hidden_size": 8}, UnknownSizeError, r"states neither model_type nor architecture"),
    ],
)
def test_configs_of_unknown_models_have_no_size(config, error, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        vision_size(f"transformers:{tmp_path}")


@pytest.mark.parametrize("model_type", ["nonesuch", "dinov2"])
def test_models_that_are_no_llm_have_no_size(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnknownSizeError, match="expected a causal language model"):
        llm_size(str(tmp_path))


def recipe(**flags: object) -> LlavaTrainConfig:
    words = ["--align.max_steps", "2181", "--instruct.max_steps", "5198", "--llm", VICUNA]
    words += [word for name, value in flags.items() for word in (f"--{name.replace('__', '.')}", str(value))]
    config = parse_config(
        LlavaTrainConfig, ["--config", "scripts/configs/llava/llava-1.5-vicuna-7b.yaml", *words], prog=""
    )
    assert config is not None
    return config


def test_the_plan_gives_the_published_hours_of_llava():
    cost = llava_cost(recipe(), gpu="a100-80", count=8)
    assert cost.gpu_hours == pytest.approx(8 * (3.5 + 10), rel=0.1)
    assert cost.seconds == pytest.approx(cost.gpu_hours / 8 * 3600)
    assert cost.disk == pytest.approx(2 * 7.06e9, rel=0.01)
    align, instruct = (stage_cost(recipe(), name, sizes_of(recipe()), 8) for name in ("align", "instruct"))
    assert instruct.flops > 1.9 * align.flops
    assert cost.memory == max(align.memory, instruct.memory)
    sharded = recipe(align__deepspeed="zero3")  # ZeRO-2, as published, holds all weights
    assert align.memory > stage_cost(sharded, "align", sizes_of(sharded), 8).memory < instruct.memory
    assert cost.most == 2 * cost.disk + max(align.checkpoints, instruct.checkpoints)


def test_squares_in_align_cost_what_they_do_without_tiles():
    tiles, squares = (
        recipe(image_aspect_ratio="anyres", align__image_aspect_ratio="null"),
        recipe(image_aspect_ratio="anyres"),
    )
    assert squares.align.image_aspect_ratio is not None
    sizes = sizes_of(tiles)
    assert sizes == sizes_of(squares)
    align = [stage_cost(config, "align", sizes, 8).flops for config in (tiles, squares)]
    assert align[1] < align[0] / 3
    assert align[1] == stage_cost(recipe(), "align", sizes_of(recipe()), 8).flops
    instruct = [stage_cost(config, "instruct", sizes, 8).flops for config in (tiles, squares)]
    assert instruct[0] == instruct[1]


def test_an_llm_on_conversations_costs_as_much_as_on_texts_of_the_assumed_length():
    def flops(length: object) -> float:
        data = "[{path: talk.json, format: llava}]"
        fields: dict[str, object] = {"data": data, "max_steps": 9, "max_length": length}
        config = recipe(stages="[llm_pretrain]", **{f"llm_pretrain__{name}": value for name, value in fields.items()})
        return stage_cost(config, "llm_pretrain", sizes_of(config), 1).flops

    assert flops("null") == flops(256) > flops(64) > 0


def test_memory_follows_sharding_and_trained_parts():
    def instruct(**flags: object) -> float:
        config = recipe(**flags)
        return stage_cost(config, "instruct", sizes_of(config), 8).memory

    zero3 = instruct()
    assert instruct(distributed__deepspeed="zero2") - zero3 == pytest.approx(2 * 6.76e9 * 7 / 8 + 2 * 5e8, rel=0.01)
    assert zero3 - instruct(distributed__deepspeed="zero3_offload") == pytest.approx(12 * 6.76e9 / 8, rel=0.01)
    assert instruct(instruct__activation_checkpointing="false") > zero3
    for optim, smaller in (("adamw_torch", 0), ("adamw_8bit", 6), ("adafactor", 4)):  # bytes of the moments' 8
        assert zero3 - instruct(instruct__optim=optim) == pytest.approx(smaller * 6.76e9 / 8, rel=0.01, abs=1)
    by_optim = [recipe(instruct__optim=optim) for optim in ("adamw_torch", "adamw_8bit")]
    stored = [stage_cost(config, "instruct", sizes_of(config), 8).checkpoints for config in by_optim]
    assert stored[0] - stored[1] == pytest.approx(3 * 6 * 6.76e9, rel=0.01)  # of three checkpoints
    for name in ("zero2", "zero2_offload", "zero3", "zero3_offload"):
        shipped = deepspeed_config(name)["zero_optimization"]
        assert (shipped["overlap_comm"], shipped["reduce_bucket_size"]) == (True, 5e8)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(known_configs()))
def test_every_known_name_has_a_size(name):
    config = known_configs()[name]
    if "architecture" in config:
        assert vision_size(f"hf-hub:{name}").tokens == (config["image_size"] // 14) ** 2
    elif config["model_type"] in {"llama", "qwen2"}:
        assert 6e9 < llm_size(name).parameters < 14e9
    else:
        found = vision_size(f"transformers:{name}")
        assert found.tokens == (config["image_size"] // config["patch_size"]) ** 2
        assert 3.0e8 < found.parameters < 4.5e8
