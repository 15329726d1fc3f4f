"""transformers' ``CLIPModel`` (OpenAI's CLIP and similar models): read and write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clips.encoder import LoadedEncoder
from clips.errors import UserError
from clips.interchange import hf_files as files
from clips.interchange.conversion import (
    OPEN_CLIP,
    TRANSFORMERS,
    Features,
    ImportedEncoder,
    WeightLink,
    block_links,
    from_open_clip,
    license_from_card,
    no_tokenizer,
    to_open_clip,
    tower_tensors,
    weight_bias_links,
    weight_link,
)
from clips.model.architectures import OPENAI_VOCAB_SIZE
from clips.model.towers import eot_token_id, text_pool_type, text_tower

_ARGMAX_EOS = 2  # with this eos_token_id transformers reads the largest token, as open_clip's "argmax"
_TARGET = "hf_clip: transformers' CLIPModel"


def weight_links(vision_layers: int, text_layers: int, text: str = "") -> list[WeightLink]:
    """Names of a model's tensors; ``text`` is the prefix of open_clip's text tower names."""
    return [
        *_vision_weight_links(vision_layers, "visual.", "vision_model."),
        weight_link("visual.proj", "visual_projection.weight", transposed=True),
        *text_weight_links(text_layers, text),
        weight_link(f"{text}text_projection", "text_projection.weight", transposed=True),
        weight_link("logit_scale", "logit_scale"),
    ]


def _vision_weight_links(layers: int, ours: str, theirs: str) -> list[WeightLink]:
    """Names of an image tower's tensors without its projection, after the prefixes of both sides."""
    return [
        weight_link(f"{ours}class_embedding", f"{theirs}embeddings.class_embedding"),
        weight_link(f"{ours}conv1.weight", f"{theirs}embeddings.patch_embedding.weight"),
        weight_link(f"{ours}positional_embedding", f"{theirs}embeddings.position_embedding.weight"),
        *weight_bias_links(f"{ours}ln_pre.{{}}", f"{theirs}pre_layrnorm.{{}}"),
        *weight_bias_links(f"{ours}ln_post.{{}}", f"{theirs}post_layernorm.{{}}"),
        *block_links(
            (f"{ours}transformer.resblocks.{{}}.", OPEN_CLIP), (f"{theirs}encoder.layers.{{}}.", TRANSFORMERS), layers
        ),
    ]


def text_weight_links(layers: int, text: str) -> list[WeightLink]:
    """Names of a text tower's tensors without its projection; CLIP and SigLIP share them."""
    return [
        weight_link(f"{text}token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        weight_link(f"{text}positional_embedding", "text_model.embeddings.position_embedding.weight"),
        *weight_bias_links(f"{text}ln_final.{{}}", "text_model.final_layer_norm.{}"),
        *block_links(
            (f"{text}transformer.resblocks.{{}}.", OPEN_CLIP), ("text_model.encoder.layers.{}.", TRANSFORMERS), layers
        ),
    ]


def is_supported(path: Path) -> bool:
    """Whether this is a directory of a ``CLIPModel``."""
    return path.is_dir() and files.model_type(path) == "clip"


def load(path: Path, architecture: str | None) -> ImportedEncoder:
    """See `clips.interchange.importing`; the directory's own config states the architecture."""
    from transformers import CLIPModel

    if architecture is not None:
        raise UserError(f"architecture: expected none, because {path} states its own")
    model = files.from_pretrained(CLIPModel, path)
    vision, text = model.config.vision_config, model.config.text_config
    quick_gelu, vision_options, text_options = files.activation_options(vision.hidden_act, text.hidden_act, path)
    if not isinstance(text.eos_token_id, int):
        raise UserError(f"{path}: config.json: text_config.eos_token_id: expected a token, got {text.eos_token_id}")
    is_argmax = text.eos_token_id in (_ARGMAX_EOS, text.vocab_size - 1)
    cfg = {
        "embed_dim": model.config.projection_dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": files.mlp_ratio(vision.intermediate_size, vision.hidden_size),
            "norm_kwargs": {"eps": vision.layer_norm_eps},
            **vision_options,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": files.mlp_ratio(text.intermediate_size, text.hidden_size),
            "norm_kwargs": {"eps": text.layer_norm_eps},
            **({"pool_type": "argmax"} if is_argmax else {"pool_type": "eos", "eos_id": text.eos_token_id}),
            **text_options,
        },
    }
    write_tokenizer: Callable[[Path], None] = no_tokenizer
    if files.has_tokenizer(path):  # named by a repository with a copy of the vocabulary for open_clip
        cfg["text_cfg"]["hf_tokenizer_name"] = "openai/clip-vit-large-patch14"
        write_tokenizer = functools.partial(files.save_tokenizer, path, rows=text.vocab_size)
    elif text.vocab_size != OPENAI_VOCAB_SIZE:
        raise UserError(f"{path}: expected a tokenizer (tokenizer.json), because its vocabulary is not OpenAI's")
    preprocess, source = files.read_preprocessing(path, vision.image_size, "CLIP", "openai", "shortest")
    links = weight_links(vision.num_hidden_layers, text.num_hidden_layers)
    return ImportedEncoder(
        model_cfg=cfg,
        preprocess_cfg=preprocess,
        preprocess_source=source,
        weights=to_open_clip(model.state_dict(), links, tower_tensors(cfg, path)),
        write_tokenizer=write_tokenizer,
        features=feature_functions(model),
        license=license_from_card(path),
        where=path,
    )


def feature_functions(model: Any) -> Features:
    """Image and text features of a two-tower model of transformers, not normalized."""

    def features(pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = (model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=tokens))
        image, text = (getattr(output, "pooler_output", output) for output in outputs)  # a tensor in older versions
        return image, text

    return features


def export(encoder: LoadedEncoder, directory: Path) -> Features:
    """See `clips.export`.

    Raises:
        UserError: a ``CLIPModel`` cannot compute this encoder.
    """
    from transformers import CLIPConfig, CLIPModel

    model, text = encoder.model, text_tower(encoder.model)
    _check_vit(model.visual, _TARGET)
    pools_otherwise = model.visual.pool_type != "tok"
    files.reject_unsupported(
        _TARGET,
        [
            (pools_otherwise, "reads its class token, this tower pools its patches otherwise"),
            (not hasattr(text, "token_embedding"), "has a text tower of its own, not this one"),
        ],
    )
    pool = text_pool_type(model)
    files.reject_unsupported(
        _TARGET,
        [
            (getattr(text, "attn_mask", None) is None, "masks later words, this text tower does not"),
            (pool not in ("argmax", "eos"), "reads the end token, this text tower another position"),
            (getattr(text, "cls_emb", None) is not None, "has no class token for texts"),
            (not isinstance(text.text_projection, nn.Parameter), "projects texts without a bias"),
            (model.logit_bias is not None, "has no logit bias, which this encoder's sigmoid loss has trained"),
        ],
    )
    vision_config, text_config = _vision_config(model.visual), files.transformer_config(text, "text", _TARGET)
    vocab_size = text.token_embedding.num_embeddings
    is_openai = vocab_size == OPENAI_VOCAB_SIZE
    if pool == "argmax":
        eos = vocab_size - 1 if is_openai else _ARGMAX_EOS
    elif (eos := eot_token_id(model)) == _ARGMAX_EOS:
        raise UserError(f"{_TARGET} reads the largest token if the end token is {_ARGMAX_EOS}")
    config = CLIPConfig(
        projection_dim=model.visual.proj.shape[1],
        vision_config=vision_config,
        text_config={
            "vocab_size": vocab_size,
            **text_config,
            "max_position_embeddings": text.positional_embedding.shape[0],
            "projection_dim": text.text_projection.shape[1],
            "bos_token_id": vocab_size - 2 if is_openai else 0,
            "eos_token_id": eos,
            "pad_token_id": vocab_size - 1 if is_openai else 0,
        },
        logit_scale_init_value=model.logit_scale.item(),
    )
    theirs = CLIPModel(config).eval()
    prefix = "text." if hasattr(model, "text") else ""
    links = weight_links(len(model.visual.transformer.resblocks), len(text.transformer.resblocks), prefix)
    theirs.load_state_dict(from_open_clip(model.state_dict(), links, theirs.state_dict()))
    theirs.save_pretrained(directory)
    files.write_preprocessing(encoder.config["preprocess_cfg"], directory)
    files.write_tokenizer(encoder.tokenizer, encoder.config["model_cfg"]["text_cfg"], directory)
    return feature_functions(theirs)


def clip_vision_model(visual: Any) -> Any:
    """Return the ``CLIPVisionModel`` with the hidden states of open_clip's ViT, in its precision.

    Raises:
        UserError: a ``CLIPVisionModel`` cannot compute them.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    _check_vit(visual, "transformers' CLIPVisionModel")
    model = CLIPVisionModel(CLIPVisionConfig(**_vision_config(visual))).to(visual.conv1.weight.dtype).eval()
    expected = model.state_dict()
    prefix = next(iter(expected)).partition("embeddings.")[0]  # "vision_model." in older versions of transformers
    weights = {name: value for name, value in visual.state_dict().items() if name != "proj"}
    model.load_state_dict(
        from_open_clip(weights, _vision_weight_links(len(visual.transformer.resblocks), "", prefix), expected)
    )
    return model


def _check_vit(visual: Any, target: str) -> None:
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        raise UserError(f"{target} has a ViT, this image tower is a {type(visual).__name__}")
    problems = (
        (isinstance(visual.ln_pre, nn.Identity), "norms the patches before the first block, this tower does not"),
        (visual.attn_pool is not None, "has no attention pooling"),
    )
    files.reject_unsupported(target, problems)


def _vision_config(visual: Any) -> dict[str, Any]:
    config = files.transformer_config(visual, "image", _TARGET)
    norms = (visual.ln_pre, visual.ln_post)
    if not all(isinstance(norm, nn.LayerNorm) and norm.eps == config["layer_norm_eps"] for norm in norms):
        raise UserError(f"{_TARGET} has one epsilon for all norms, this image tower several")
    return {
        **config,
        "image_size": visual.image_size[0],
        "patch_size": visual.patch_size[0],
        "projection_dim": config["hidden_size"] if visual.proj is None else visual.proj.shape[1],
    }
