from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from families import quick_of
from torch import nn
from torch.utils.data import default_collate

from clips.method.clips_model import ModelConfig, build_model, compute_losses
from clips.method.optimizer import OptimizerConfig, build_optimizer
from clips.method.recipes import CaptionerConfig, RecipeConfig
from clips.model import towers
from clips.model.architectures import CONFIG_DIR, read_config_file
from clips.model.tokenizer import ClipsTokenizer

CAPTIONER = CaptionerConfig(max_length=16)
TEXTS = [
    ("my dog", "A dog runs. It is brown!"),
    ("car", "A red car."),
    ("sale 50% off", "Two cups on a table. One is blue."),
    ("img_001", "Nothing but grass"),
]


def make(name="clips", seed=0, **settings):
    return build_model(ModelConfig(context_length=12), RecipeConfig(name=name, captioner=CAPTIONER, **settings), seed)


def batch_of(model, texts=TEXTS):
    rng = np.random.default_rng(0)
    tokenizer = ClipsTokenizer(model.context_length)
    batch = default_collate([model.recipe.prepare(web, synthetic, rng, tokenizer) for web, synthetic in texts])
    size = model.image_size
    return batch | {"image": torch.randn(len(texts), 3, size, size, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def model():
    return make()


def test_one_forward_gives_what_the_towers_and_the_captioner_give(model):
    batch = batch_of(model)
    outputs = model(batch)
    torch.testing.assert_close(outputs["image"], model.clip.encode_image(batch["image"], normalize=True))
    for name in ("web", "partial"):
        expected = model.clip.encode_text(batch[name], normalize=True)
        torch.testing.assert_close(outputs[name], expected, atol=1e-6, rtol=0)
    assert outputs["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert outputs["logit_scale"].shape == ()
    patches = model.clip.visual.forward_intermediates(batch["image"], indices=1, output_fmt="NLC")
    words = model.clip.forward_intermediates(text=batch["web"], text_indices=1)["text_intermediates"][0][:, :-1]
    tokens = patches["image_intermediates"][0], words
    summed = model.captioner(*tokens, batch["target"], batch["target_mask"])
    torch.testing.assert_close(outputs["caption_loss_sum"], summed)
    assert outputs["caption_tokens"] == batch["target_mask"].sum() == 9 + 5 + 11 + 4


def test_tokens_are_read_from_the_text_that_the_captioner_sees():
    model = make("clips", positives=("partial",))  # the web caption is encoded for the captioner alone
    batch = batch_of(model)
    outputs = model(batch)
    _, patches = towers.encode_image(model.clip, batch["image"])
    _, words = towers.encode_text(model.clip, batch["web"])
    summed = model.captioner(patches, words, batch["target"], batch["target_mask"])
    torch.testing.assert_close(outputs["caption_loss_sum"], summed)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("clips", {}),
        ("coca", {}),
        ("recap", {"loss": "sigmoid"}),
        ("clips", {"positives": ("partial",)}),
        ("clips", {"loss": "sigmoid", "caption_loss_weight": 0.0}),
    ],
)
def test_every_recipe_trains_all_that_it_builds(name, settings):
    model = make(name, **settings)
    batch = batch_of(model)
    compute_losses(model.recipe, model(batch))["loss"].backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == ["clip.visual.positional_embedding"]
    assert all(value.grad.abs().max() > 0 for value in model.parameters() if value.grad is not None)
    assert (model.captioner is None) == (name == "recap" or "caption_loss_weight" in settings)
    assert (model.clip.logit_bias is not None) == (settings.get("loss") == "sigmoid")


def test_bf16_autocast_is_finite_float32_and_near(model):
    batch = batch_of(model)
    exact = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch)
        losses = compute_losses(model.recipe, outputs)
    losses["loss"].backward()
    for name in ("image", "web", "partial", "caption_loss_sum"):
        assert outputs[name].dtype == torch.float32
        torch.testing.assert_close(outputs[name], exact[name], atol=0.05, rtol=0.02)
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # the switch is put back
    model.zero_grad()


def test_towers_start_equal_for_any_recipe_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    clips, clip, other = make("clips"), make("clip"), make("clip", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert clip.captioner is None
    ours, theirs = clips.clip.state_dict(), clip.clip.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(clip.clip.text_projection, other.clip.text_projection)


def test_the_captioner_takes_the_size_of_the_text_tower_by_default():
    assert make().captioner.config.width == 128
    config = RecipeConfig(captioner=CaptionerConfig(width=32, num_layers=1, max_length=16))
    shape = build_model(ModelConfig(context_length=12), config, 0).captioner.config
    assert (shape.width, shape.layers, shape.heads, shape.length, shape.vocabulary) == (32, 1, 4, 16, 32_000)


@pytest.mark.parametrize(("recipe", "maximum"), [("clip", 100.0), ("siglip", 112.3)])
def test_the_logit_scale_is_clamped_at_100_but_for_siglips(recipe, maximum):
    """Published SigLIPs have 112.3; big_vision, which trained them, clamps nothing."""
    model = make(recipe)
    with torch.no_grad():
        model.clip.logit_scale.fill_(math.log(112.3))
    model.clamp_logit_scale()
    assert model.clip.logit_scale.exp().item() == pytest.approx(maximum)
    with torch.no_grad():
        model.clip.logit_scale.fill_(-1.0)
    model.clamp_logit_scale()
    assert model.clip.logit_scale.item() == 0.0  # as open_clip's trainer


def test_weight_decay_leaves_vectors_embeddings_and_added_tokens_alone(model):
    names = model.no_decay_names()
    assert {"clip.logit_scale", "clip.positional_embedding", "captioner.learnable_tokens"} <= names
    assert {"clip.visual.class_embedding", "captioner.head.norm.weight", "clip.token_embedding.weight"} <= names
    assert not {"clip.text_projection", "clip.visual.proj", "captioner.head.weight"} & names
    assert not {"clip.visual.conv1.weight", "clip.transformer.resblocks.0.attn.in_proj_weight"} & names
    assert names <= {name for name, _ in model.named_parameters()}


ADDED = {
    "clips-rn-tiny": ["attnpool.positional_embedding"],
    "coca_ViT-B-32": ["attn_pool.query"],
    "timm:vit_tiny_patch16_224": ["trunk.pos_embed", "trunk.cls_token"],
    "timm:swin_tiny_patch4_window7_224": ["trunk.layers.0.blocks.0.attn.relative_position_bias_table"],
    "timm:vit_small_patch16_dinov3": ["trunk.cls_token", "trunk.reg_token"],
    "timm:xcit_nano_12_p16_224": ["trunk.blocks.0.attn.temperature"],
    "clips-tinyvit-tiny": ["trunk.stages.1.blocks.0.attn.attention_biases"],
}


@pytest.mark.parametrize(
    "architecture", quick_of(ADDED, "clips-rn-tiny", "timm:vit_tiny_patch16_224", "clips-tinyvit-tiny")
)
def test_extra_parameters_of_other_towers_are_not_decayed_and_matrices_are(architecture: str):
    model = build_model(ModelConfig(architecture=architecture), RecipeConfig(name="clip"), 0)
    names = model.no_decay_names()
    assert {f"clip.visual.{name}" for name in ADDED[architecture]} <= names
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    kernels = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}
    assert kernels
    assert not kernels & names


@pytest.mark.parametrize("name", ["clips", "coca"])
def test_a_token_that_never_occurs_keeps_its_row(name: str):
    model = make(name)
    batch = batch_of(model)
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1), model.no_decay_names())
    tables = {"clip.token_embedding.weight", "captioner.embedding.weight"} & model.state_dict().keys()
    assert len(tables) == 1 + (name == "coca")
    before = {table: model.state_dict()[table].clone() for table in tables}
    for _ in range(2):
        compute_losses(model.recipe, model(batch))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = torch.cat([batch[key].flatten() for key in ("web", "partial", "mixed", "target") if key in batch])
    for table in tables:
        after = model.state_dict()[table]
        absent = torch.ones(len(after), dtype=torch.bool)
        absent[rows] = False
        assert torch.equal(after[absent], before[table][absent])
        assert not torch.equal(after[~absent], before[table][~absent])


def spread(value: torch.Tensor) -> float:
    return float(value.detach().double().std())


@torch.no_grad()
def test_vits_are_initialized_as_in_the_reference(model):
    clip, width = model.clip, 128
    visual = clip.visual
    assert spread(visual.conv1.weight) == pytest.approx((2 / (3 * 16 * 16)) ** 0.5, rel=0.02)
    assert float(visual.conv1.weight.abs().max()) <= (6 / (3 * 16 * 16)) ** 0.5  # uniform
    assert 0 < float(visual.class_embedding.abs().max()) < 1e-5
    assert spread(visual.proj) == pytest.approx(0.02, rel=0.03)
    for block in visual.transformer.resblocks:
        for weight in (block.attn.in_proj_weight, block.attn.out_proj.weight, block.mlp.c_fc.weight):
            assert spread(weight) == pytest.approx(0.02, rel=0.03)
        assert spread(block.mlp.c_proj.weight) == pytest.approx((0.3072 / width) ** 0.5, rel=0.03)
        assert float(block.mlp.c_proj.weight.abs().max()) < 2.3 * (0.3072 / width) ** 0.5  # truncated
    for block in clip.transformer.resblocks:
        assert spread(block.attn.in_proj_weight) == pytest.approx(width**-0.5, rel=0.03)
        assert spread(block.mlp.c_fc.weight) == pytest.approx((2 * width) ** -0.5, rel=0.03)
        for weight in (block.attn.out_proj.weight, block.mlp.c_proj.weight):
            assert spread(weight) == pytest.approx(width**-0.5 * (2 * clip.transformer.layers) ** -0.5, rel=0.03)
    assert not any(value.any() for name, value in model.named_parameters() if name.endswith("bias"))


def test_other_architectures_keep_the_initialization_of_their_library(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(read_config_file(CONFIG_DIR / "clips-tiny.json")))
    found = build_model(ModelConfig(architecture=str(tmp_path / "mine.json")), RecipeConfig(name="clip"), 0)
    assert found.clip.visual.transformer.resblocks[0].mlp.c_fc.bias.any()
