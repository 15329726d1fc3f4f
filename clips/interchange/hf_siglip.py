"""transformers' ``SiglipModel``, SigLIP and SigLIP 2 of one resolution: read and write.

open_clip's image tower is timm's ViT of the same size; only sizes with a timm name are supported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from clips.encoder import LoadedEncoder
from clips.errors import UserError
from clips.interchange import hf_files as files
from clips.interchange.conversion import (
    TIMM,
    TRANSFORMERS,
    Features,
    ImportedEncoder,
    WeightLink,
    block_links,
    from_open_clip,
    license_from_card,
    to_open_clip,
    tower_tensors,
    weight_bias_links,
    weight_link,
)
from clips.interchange.hf_clip import feature_functions, text_weight_links
from clips.model.loading import first_mismatch
from clips.model.towers import text_pool_type

_TARGET = "hf_siglip: transformers' SiglipModel"


def weight_links(vision_layers: int, text_layers: int) -> list[WeightLink]:
    """Names of a model's tensors."""
    pool, head = "visual.trunk.attn_pool.", "vision_model.head."
    attention = [
        WeightLink((f"{pool}q.{kind}", f"{pool}kv.{kind}"), (f"{head}attention.in_proj_{kind}",))
        for kind in ("weight", "bias")
    ]
    return [
        *_trunk_links("visual.trunk.", "vision_model.", vision_layers),
        weight_link(f"{pool}latent", f"{head}probe"),
        *attention,
        *weight_bias_links(f"{pool}proj.{{}}", f"{head}attention.out_proj.{{}}"),
        *weight_bias_links(f"{pool}norm.{{}}", f"{head}layernorm.{{}}"),
        *weight_bias_links(f"{pool}mlp.fc1.{{}}", f"{head}mlp.fc1.{{}}"),
        *weight_bias_links(f"{pool}mlp.fc2.{{}}", f"{head}mlp.fc2.{{}}"),
        *text_weight_links(text_layers, "text."),
        *weight_bias_links("text.text_projection.{}", "text_model.head.{}"),
        weight_link("logit_scale", "logit_scale"),
        weight_link("logit_bias", "logit_bias"),
    ]


def _trunk_links(ours: str, theirs: str, layers: int) -> list[WeightLink]:
    """Names of the tensors of timm's ViT without its pooling, after both prefixes."""
    return [
        *weight_bias_links(f"{ours}patch_embed.proj.{{}}", f"{theirs}embeddings.patch_embedding.{{}}"),
        weight_link(f"{ours}pos_embed", f"{theirs}embeddings.position_embedding.weight"),
        *weight_bias_links(f"{ours}norm.{{}}", f"{theirs}post_layernorm.{{}}"),
        *block_links((f"{ours}blocks.{{}}.", TIMM), (f"{theirs}encoder.layers.{{}}.", TRANSFORMERS), layers),
    ]


def is_supported(path: Path) -> bool:
    """Whether this is a directory of a ``SiglipModel``."""
    return path.is_dir() and files.model_type(path) == "siglip"


def load(path: Path, architecture: str | None) -> ImportedEncoder:
    """See `clips.interchange.importing`; ``architecture`` names timm's image tower if several match."""
    from transformers import SiglipModel

    model = files.from_pretrained(SiglipModel, path)
    vision, text = model.config.vision_config, model.config.text_config
    if text.projection_size != vision.hidden_size:
        raise UserError(f"{path}: expected texts projected to the width of the image tower")
    _, _, text_options = files.activation_options(vision.hidden_act, text.hidden_act, path)
    name = architecture or _timm_name(vision, path)
    is_gemma = text.vocab_size == 256_000
    cfg = {
        "embed_dim": vision.hidden_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size,
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2-256" if is_gemma else "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": files.mlp_ratio(text.intermediate_size, text.hidden_size),
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": text.layer_norm_eps},
            **text_options,
        },
    }
    if not files.has_tokenizer(path):
        raise UserError(f"{path}: expected a tokenizer (tokenizer.json or spiece.model) next to the weights")
    preprocess, source = files.read_preprocessing(path, vision.image_size, "SigLIP", "half", "squash")
    links = weight_links(vision.num_hidden_layers, text.num_hidden_layers)
    weights = to_open_clip(model.state_dict(), links, tower_tensors(cfg, path))
    own, theirs = files.activation_name(_meta_trunk(name).blocks[0].mlp.act), vision.hidden_act
    return ImportedEncoder(
        model_cfg=cfg,
        preprocess_cfg=preprocess,
        preprocess_source=source,
        weights=weights,
        write_tokenizer=lambda directory: files.save_tokenizer(path, directory, text.vocab_size),
        features=feature_functions(model),
        approximation=None if own == theirs else f"timm's {name} computes {own}, the source {theirs}",
        license=license_from_card(path),
        where=path,
    )


def _timm_name(vision: Any, where: Path) -> str:
    # Of the same sizes and, if there is one, the same activation.
    import timm

    width, layers = vision.hidden_size, vision.num_hidden_layers
    sizes = (width, layers, vision.intermediate_size, vision.num_attention_heads)
    candidates = []
    for name in timm.list_models(f"vit_*_patch{vision.patch_size}_siglip_{vision.image_size}"):
        trunk = _meta_trunk(name)
        block = trunk.blocks[0]
        if (trunk.embed_dim, len(trunk.blocks), block.mlp.fc1.out_features, block.attn.num_heads) == sizes:
            candidates.append((files.activation_name(block.mlp.act) != vision.hidden_act, name))
    if not candidates:
        raise UserError(
            f"{where}: timm has no SigLIP tower of width {width}, {layers} layers and patches of {vision.patch_size} "
            f"at {vision.image_size} px, and open_clip builds it by timm's name"
        )
    return min(candidates)[1]


def _meta_trunk(name: str) -> Any:
    import timm

    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def export(encoder: LoadedEncoder, directory: Path) -> Features:
    """See `clips.export`.

    Raises:
        UserError: a ``SiglipModel`` cannot compute this encoder.
    """
    from transformers import SiglipConfig, SiglipModel

    model = encoder.model
    trunk: Any = getattr(model.visual, "trunk", None)
    text: Any = getattr(model, "text", None)
    map_pooled = trunk is not None and getattr(trunk, "global_pool", "") == "map" and trunk.cls_token is None
    projection, last = getattr(text, "text_projection", None), text is not None and text_pool_type(model) == "last"
    files.reject_unsupported(
        _TARGET,
        [
            (
                not map_pooled or len(model.visual.head) > 0,
                "has a ViT with attention pooling, this image tower does not",
            ),
            (not last, "reads texts at the last position, this text tower does not"),
            (getattr(text, "attn_mask", None) is not None, "does not mask later words, this text tower does"),
            (not isinstance(projection, nn.Linear), "projects texts with a bias"),
            (model.logit_bias is None, "has a logit bias, this encoder has none"),
        ],
    )
    text_config = files.transformer_config(text, "text", _TARGET)
    config = SiglipConfig(
        vision_config=_vision_config(trunk),
        text_config={
            "vocab_size": text.token_embedding.num_embeddings,
            **text_config,
            "max_position_embeddings": text.positional_embedding.shape[0],
            "projection_size": text.text_projection.out_features,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    )
    theirs = SiglipModel(config).eval()
    links = weight_links(len(trunk.blocks), text_config["num_hidden_layers"])
    theirs.load_state_dict(from_open_clip(model.state_dict(), links, theirs.state_dict()))
    theirs.save_pretrained(directory)
    files.write_preprocessing(encoder.config["preprocess_cfg"], directory)
    files.write_tokenizer(encoder.tokenizer, encoder.config["model_cfg"]["text_cfg"], directory)
    return feature_functions(theirs)


def siglip_vision_model(trunk: Any) -> Any:
    """Return the ``SiglipVisionModel``, without pooling, with the hidden states of timm's ViT, in its precision.

    The last hidden state differs: it is before the final norm.

    Raises:
        UserError: a ``SiglipVisionModel`` cannot compute them.
    """
    from timm.models.vision_transformer import VisionTransformer
    from transformers import SiglipVisionConfig, SiglipVisionModel

    target = "transformers' SiglipVisionModel"
    files.reject_unsupported(
        target,
        [
            (type(trunk) is not VisionTransformer, f"is a ViT of timm, this tower a {type(trunk).__name__}"),
            (getattr(trunk, "num_prefix_tokens", 0) > 0, "has patches only, this tower a class token or registers"),
            (isinstance(getattr(trunk, "norm", None), nn.Identity), "has a final norm, this tower has none"),
        ],
    )
    files.reject_unsupported(target, [(files.activation_name(trunk.blocks[0].mlp.act) is None, "has a GELU")])
    weights = {name: value for name, value in trunk.state_dict().items() if not name.startswith("attn_pool.")}
    config = SiglipVisionConfig(**_vision_config(trunk), vision_use_head=False)
    model = SiglipVisionModel(config).to(trunk.patch_embed.proj.weight.dtype).eval()
    expected = model.state_dict()
    prefix = next(iter(expected)).partition("embeddings.")[0]  # "vision_model." in older versions of transformers
    mapped = from_open_clip(weights, _trunk_links("", prefix, len(trunk.blocks)), expected)
    if mismatch := first_mismatch(mapped, expected):
        raise UserError(f"{target} has other weights than this tower: it {mismatch}")
    model.load_state_dict(mapped)
    return model


def _vision_config(trunk: Any) -> dict[str, Any]:
    return {
        "hidden_size": trunk.embed_dim,
        "intermediate_size": trunk.blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": trunk.blocks[0].attn.num_heads,
        "image_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
        "hidden_act": files.activation_name(trunk.blocks[0].mlp.act),
        "layer_norm_eps": trunk.norm.eps,
    }
