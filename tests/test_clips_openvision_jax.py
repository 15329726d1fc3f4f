"""Import of the authors' JAX parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import exchange_world as world
import numpy as np
import pytest
import torch

from clips.encoder import load_encoder
from clips.interchange.importing import ImportConfig, run_import
from clips.model.architectures import ModelConfig, model_cfg
from clips.model.pos_embed import openvision_sincos_pos_embed
from clips.model.tokenizer import ClipsTokenizer
from clips.model.towers import build_towers


def flax_parameters(weights: dict[str, torch.Tensor], heads: int | None) -> dict[str, np.ndarray]:
    """open_clip's tensors as the authors' code names and turns them, written from its conversion script.

    Args:
        weights: a state dict.
        heads: of the attention, whose kernels are then split by heads; None for flat ones.
    """
    params: dict[str, Any] = {
        "img/cls": weights["visual.class_embedding"][None, None],
        "img/embedding/kernel": weights["visual.conv1.weight"].permute(2, 3, 1, 0),
        "img/encoder_norm/scale": weights["visual.ln_post.weight"],
        "img/encoder_norm/bias": weights["visual.ln_post.bias"],
        "img/head/kernel": weights["visual.proj"],
        "txt/pos_embedding": weights["positional_embedding"][None],
        "txt/Embed_0/embedding": weights["token_embedding.weight"],
        "txt/encoder_norm/scale": weights["ln_final.weight"],
        "txt/encoder_norm/bias": weights["ln_final.bias"],
        "txt/head/kernel": weights["text_projection"],
        "txt_decoder/learnable_tokens": torch.zeros(3, 4),
        "t": weights["logit_scale"].reshape(1),
    }
    for tower, prefix in (("img", "visual.transformer"), ("txt", "transformer")):
        for layer in range(2):
            ours, theirs = f"{prefix}.resblocks.{layer}.", f"{tower}/Transformer/encoderblock_{layer}/"
            for number in (0, 1):
                params[f"{theirs}LayerNorm_{number}/scale"] = weights[f"{ours}ln_{number + 1}.weight"]
                params[f"{theirs}LayerNorm_{number}/bias"] = weights[f"{ours}ln_{number + 1}.bias"]
            for number, part in enumerate(("c_fc", "c_proj")):
                params[f"{theirs}MlpBlock_0/Dense_{number}/kernel"] = weights[f"{ours}mlp.{part}.weight"].t()
                params[f"{theirs}MlpBlock_0/Dense_{number}/bias"] = weights[f"{ours}mlp.{part}.bias"]
            attention = f"{theirs}MultiHeadDotProductAttention_0/"
            width = len(weights[f"{ours}ln_1.bias"])
            names = ("query", "key", "value")
            for name, kernel in zip(names, weights[f"{ours}attn.in_proj_weight"].chunk(3), strict=True):
                params[f"{attention}{name}/kernel"] = kernel.t().reshape(width, heads, -1) if heads else kernel.t()
            for name, bias in zip(names, weights[f"{ours}attn.in_proj_bias"].chunk(3), strict=True):
                params[f"{attention}{name}/bias"] = bias.reshape(heads, -1) if heads else bias
            out = weights[f"{ours}attn.out_proj.weight"].t()
            params[f"{attention}out/kernel"] = out.reshape(heads, -1, width) if heads else out
            params[f"{attention}out/bias"] = weights[f"{ours}attn.out_proj.bias"]
    return {name: value.contiguous().numpy() for name, value in params.items()}


@pytest.fixture
def tiny_clips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A CLIPS architecture of two layers."""
    from clips.model import architectures

    cfg = json.loads((architectures.CONFIG_DIR / "clips-tiny.json").read_text())
    cfg["vision_cfg"] |= {"image_size": 32, "width": 64, "layers": 2, "head_width": 16}
    cfg["text_cfg"] |= {"layers": 2, "width": 64}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "clips-two.json").write_text(json.dumps(cfg))
    monkeypatch.setattr(architectures, "CONFIG_DIR", tmp_path / "configs")
    return "clips-two"


@pytest.mark.parametrize("heads", [None, 4])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_the_authors_jax_parameters(tmp_path: Path, tiny_clips: str, heads: int | None, prefix: str):
    model = world.shaken(build_towers(model_cfg(ModelConfig(architecture=tiny_clips, context_length=12))))
    with torch.no_grad():
        model.visual.positional_embedding.copy_(openvision_sincos_pos_embed(2, 64))
    params = flax_parameters(model.state_dict(), heads)
    np.savez(tmp_path / "checkpoint.npz", **{f"{prefix}{name}": value for name, value in params.items()})
    source, output = str(tmp_path / "checkpoint.npz"), str(tmp_path / "encoder")
    run_import(ImportConfig(path=source, output=output, architecture=tiny_clips))
    encoder = load_encoder(output)
    assert all(torch.equal(value, encoder.model.state_dict()[key]) for key, value in model.state_dict().items())
    assert encoder.config["model_cfg"]["text_cfg"]["context_length"] == 12
    tokens = encoder.tokenizer(world.TEXTS)
    assert torch.equal(tokens, ClipsTokenizer(12)(world.TEXTS))


def test_the_authors_positions_by_hand():
    table = openvision_sincos_pos_embed(3, 16)
    assert table.shape == (10, 16)
    assert not table[0].any()
    angles = [2 / 10_000 ** (k / 3) for k in range(4)]  # column 2, row 1: the last but three
    rows = [1 / 10_000 ** (k / 3) for k in range(4)]
    by_hand = [*np.sin(angles), *np.cos(angles), *np.sin(rows), *np.cos(rows)]
    assert table[1 + 1 * 3 + 2].tolist() == pytest.approx(by_hand, abs=1e-6)
