"""Released architectures against what the authors publish of them (UCSC-VLAA/OpenVision and UCSC-VLAA/CLIPS)."""

from __future__ import annotations

import pytest
import torch
from families import quick_of

from clips.errors import UserError
from clips.interchange.open_clip_format import configs_for_architecture, parse_released_name
from clips.model import architectures, towers
from clips.model.architectures import ModelConfig

# (width, layers, hidden width, heads) of the image and of the text tower: decode_variant in src/models/vit.py and
# src/models/text_transformer.py; width of the embedding: src/convert_upload/open_clip/model_configs; millions of
# parameters of the image tower: the model zoo of the README (of L: that of OpenVision 2, 304 M; elsewhere 307 M)
FAMILIES = {
    "ti": ((192, 12, 768, 3), (192, 12, 768, 3), 192, 5.5),
    "s": ((384, 12, 1536, 6), (384, 12, 1536, 6), 384, 22),
    "b": ((768, 12, 3072, 12), (512, 12, 2048, 8), 512, 86),
    "l": ((1024, 24, 4096, 16), (768, 12, 3072, 12), 768, 304),
    "so400m": ((1152, 27, 4304, 16), (1152, 27, 4304, 16), 1152, 412),
    "h": ((1280, 32, 5120, 16), (1024, 24, 4096, 16), 1024, 632),
}
RELEASED = {  # by architecture: the family's published name, patch, image sizes
    "clips-ti-16": ("tiny", 16, [160, 224, 384]),
    "clips-ti-8": ("tiny", 8, [160, 224, 384]),
    "clips-s-16": ("small", 16, [160, 224, 384]),
    "clips-s-8": ("small", 8, [160, 224, 384]),
    "clips-b-16": ("base", 16, [160, 224, 384]),
    "clips-b-8": ("base", 8, [160, 224, 384]),
    "clips-l-14": ("large", 14, [84, 224, 336]),
    "clips-so400m-14": ("so400m", 14, [84, 224, 384]),
    "clips-h-14": ("huge", 14, [84, 224]),
}


@pytest.mark.parametrize("name", quick_of(RELEASED, "clips-ti-16", "clips-b-16", "clips-l-14"))
def test_sizes_and_parameters_are_the_published_ones(name: str):
    with torch.device("meta"):
        model = towers.build_towers(architectures.model_cfg(ModelConfig(architecture=name)))
    image, text, embedding, millions = FAMILIES[name.split("-")[1]]
    for transformer, published in ((model.visual.transformer, image), (model.transformer, text)):
        block = transformer.resblocks[0]
        found = (transformer.width, transformer.layers, block.mlp.c_fc.out_features, block.attn.num_heads)
        assert found == published
    assert model.visual.proj.shape == (image[0], embedding)
    assert model.text_projection.shape == (text[0], embedding)
    assert model.visual.patch_size == (RELEASED[name][1],) * 2
    assert model.token_embedding.weight.shape == (32_000, text[0])
    count = sum(value.numel() for value in model.visual.parameters()) - model.visual.proj.numel()
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_name_gives_what_the_released_config_states(name: str):
    family, patch, sizes = RELEASED[name]
    for size in sizes:
        cfg, preprocess, _ = configs_for_architecture(f"openvision-vit-{family}-patch{patch}-{size}", {})
        assert parse_released_name(f"openvision-vit-{family}-patch{patch}-{size}") == (name, size)
        assert (cfg["vision_cfg"]["image_size"], preprocess["size"]) == (size, [size, size])
        stated = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "norm_kwargs": {"eps": 1e-6}}
        assert cfg["vision_cfg"].items() >= stated.items()
        stated = {"context_length": 80, "vocab_size": 32000, "pool_type": "last", "no_causal_mask": True}
        stated |= {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
        assert cfg["text_cfg"].items() >= stated.items()
        stated = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        assert preprocess.items() >= (stated | {"interpolation": "bilinear", "resize_mode": "squash"}).items()


def test_names_of_the_paper_and_sizes_from_the_weights():
    assert parse_released_name("ViT-L-14-CLIPS-336") == ("clips-l-14", 336)
    assert parse_released_name("ViT-H-14-CLIPS-224") == ("clips-h-14", 224)
    assert parse_released_name("ViT-L-14") == ("ViT-L-14", None)
    weights = {
        "visual.positional_embedding": torch.empty(1 + 24**2, 1024, device="meta"),
        "positional_embedding": torch.empty(64, 768, device="meta"),
    }
    cfg, preprocess, _ = configs_for_architecture("clips-l-14", weights)
    assert (cfg["vision_cfg"]["image_size"], cfg["text_cfg"]["context_length"]) == (336, 64)
    assert preprocess["size"] == [336, 336]
    with pytest.raises(UserError, match=r"unknown architecture 'clips-m-14'; did you mean"):
        configs_for_architecture("clips-m-14", {})


@pytest.mark.parametrize("name", sorted(set(architectures.list_architectures()) - {*RELEASED, "clips-l-16"}))
def test_the_small_architectures_build(name: str):
    with torch.device("meta"):
        model = towers.build_towers(architectures.model_cfg(ModelConfig(architecture=name)))
    assert sum(value.numel() for value in model.parameters()) < 30e6
