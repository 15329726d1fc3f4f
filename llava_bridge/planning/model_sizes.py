"""Sizes of the parts of a LLaVA and their FLOPs, from configs alone.

Models are built on torch's meta device, where tensors have shapes and no content. The config is that of the directory,
of the local copy of a Hub repository, or of ``known.json``: widths and depths of well-known models. timm's and
open_clip's models are built by name.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clips.errors import UserError
from clips.model_refs import HF_HUB_PREFIX, OPEN_CLIP_CONFIG, is_on_hub
from llava_bridge.encoders.encoder import VisionTower, hidden_state
from llava_bridge.encoders.spec import parse_spec
from llava_bridge.model.small_llama import SmallLlamaConfig
from llava_bridge.projectors import ProjectorConfig, ProjectorShape, build_projector, num_output_tokens

_KNOWN = Path(__file__).with_name("known.json")


class UnknownSizeError(Exception):
    """The size of a model is unknown; the message names it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSize:
    """An image tower.

    Args:
        parameters: number of parameters.
        flops: FLOPs of an image's forward pass; a multiplication with an addition counts as two.
        tokens: number of tokens per image, without the class token.
        width: of a token (hidden size).
    """

    parameters: int
    flops: float
    tokens: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualTowerSize:
    """An image tower and its text tower.

    Args:
        parameters: of both.
        image_flops: of an image's forward pass.
        text_flops: of a text's, padded to the tower's length as it is when encoded.
    """

    parameters: int
    image_flops: float
    text_flops: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlmSize:
    """A causal language model.

    Args:
        parameters: of it.
        multiplied: parameters that every token is multiplied with: all except input embeddings that are not tied.
        layers: number of layers.
        width: of a token.
    """

    parameters: int
    multiplied: int
    layers: int
    width: int

    def forward_flops(self, tokens: float) -> float:
        """Of one sequence: two per parameter and token, and the causal half of attention's two products."""
        return 2.0 * self.multiplied * tokens + 2.0 * self.layers * self.width * tokens**2


@functools.cache
def known_configs() -> dict[str, dict[str, Any]]:
    """Name on the Hub → its config, as far as sizes depend on it."""
    return json.loads(_KNOWN.read_text(encoding="utf-8"))


@functools.cache
def vision_size(spec: str, image_size: int | None = None) -> VisionSize:
    """The image tower that an encoder spec names.

    Args:
        spec: as in a LLaVA's config.
        image_size: image size in pixels; None uses the encoder's own.

    Raises:
        UnknownSizeError: its size is unknown.
        UserError: the library does not know the name.
    """
    return _tower_size(*_tower(spec, image_size))


def vision_size_of(model_cfg: Mapping[str, Any]) -> VisionSize:
    """The image tower of an open_clip ``model_cfg``."""
    return _tower_size(*_open_clip_tower(model_cfg, None))


def dual_tower_size(encoder: str | Mapping[str, Any]) -> DualTowerSize:
    """Sizes of both towers of an encoder; without a text tower, texts have no FLOPs.

    Args:
        encoder: an encoder spec, or an open_clip ``model_cfg``.

    Raises:
        UnknownSizeError: their size is unknown, for instance of transformers' text towers.
        UserError: the library does not know the name, or cannot build it.
    """
    if isinstance(encoder, str) and parse_spec(encoder)[0] != "open_clip":
        vision = vision_size(encoder)
    else:
        model_cfg = _open_clip_config(parse_spec(encoder)[1]) if isinstance(encoder, str) else encoder
        if "text_cfg" in model_cfg:
            return _dual_tower_size(json.dumps(model_cfg, sort_keys=True))
        vision = vision_size_of(model_cfg)
    return DualTowerSize(parameters=vision.parameters, image_flops=vision.flops)


@functools.cache  # models that differ only in seed or recipe have equal sizes
def _dual_tower_size(model_cfg: str) -> DualTowerSize:
    from clips.model.architectures import preprocess_cfg
    from clips.model.towers import build_towers
    from clips.planning.profilers import FlopCounter

    cfg = json.loads(model_cfg)
    if "hf_model_name" in cfg["text_cfg"]:
        raise UnknownSizeError(f"the text tower {cfg['text_cfg']['hf_model_name']}")
    flops = []
    with torch.no_grad(), torch.device("meta"):
        towers = build_towers(cfg).eval()
        images = torch.empty(1, 3, *preprocess_cfg(cfg)["size"])
        texts = torch.zeros(1, cfg["text_cfg"].get("context_length", 77), dtype=torch.long)  # open_clip's default
        for encode, inputs in ((towers.encode_image, images), (towers.encode_text, texts)):
            with FlopCounter() as counter:
                encode(inputs)
            flops.append(counter.total)
    parameters = sum(value.numel() for value in towers.parameters())
    return DualTowerSize(parameters=parameters, image_flops=flops[0], text_flops=flops[1])


def _tower_size(tower: VisionTower, size: int) -> VisionSize:
    from clips.planning.profilers import FlopCounter

    tower.eval()
    with torch.no_grad(), torch.device("meta"), FlopCounter() as counter:
        state = hidden_state(tower, torch.empty(1, 3, size, size), tower.default_layer)
    return VisionSize(
        parameters=sum(value.numel() for value in tower.parameters()),
        flops=counter.total,
        tokens=state.shape[1] - int(tower.class_token),
        width=state.shape[2],
    )


def _tower(spec: str, image_size: int | None) -> tuple[VisionTower, int]:
    """The tower on the meta device, and its image size."""
    source, reference = parse_spec(spec)
    if source == "timm":
        return _timm_tower(reference.partition("@")[0], image_size)
    if source == "transformers":
        from llava_bridge.encoders import transformers_source

        stated = _hf_config(reference)
        if stated.get("model_type", transformers_source.TIMM_WRAPPER) == transformers_source.TIMM_WRAPPER:
            if "architecture" not in stated:
                raise UnknownSizeError(f"{reference} (its config.json states neither model_type nor architecture)")
            return _timm_tower(stated["architecture"], image_size)
        config = transformers_source.vision_config(stated)
        size = image_size or transformers_source.stated_image_size(config)
        if size is None:
            raise UnknownSizeError(f"{reference} (its config.json states no image_size)")
        with torch.device("meta"):
            return transformers_source.build({"config": {**config.to_dict(), "image_size": size}}), size
    return _open_clip_tower(_open_clip_config(reference), image_size)


def _timm_tower(name: str, image_size: int | None) -> tuple[VisionTower, int]:
    import timm

    from llava_bridge.encoders import timm_source

    if not timm.is_model(name):
        raise UserError(f"encoder: timm has no model '{name}'")
    settings: Any = timm.get_pretrained_cfg(name)
    size = image_size or int(settings.input_size[-1])
    with torch.device("meta"):
        tower = timm_source.build({"name": name, "image_size": size, "fixed_size": bool(settings.fixed_input_size)})
    return tower, size


def _open_clip_tower(model_cfg: Mapping[str, Any], image_size: int | None) -> tuple[VisionTower, int]:
    from llava_bridge.encoders import open_clip_source

    vision = dict(model_cfg["vision_cfg"])
    if vision.get("timm_model_name"):
        return _timm_tower(vision["timm_model_name"], image_size or vision.get("image_size"))
    size = int(image_size or vision.get("image_size", 224))
    with torch.device("meta"):
        return open_clip_source.build({**model_cfg, "vision_cfg": {**vision, "image_size": size}}), size


def _open_clip_config(reference: str) -> Mapping[str, Any]:
    """open_clip's ``model_cfg`` of a directory, or of a name on the Hub."""
    import open_clip

    from clips.interchange.imported_encoder import parse_released_name
    from clips.model.architectures import ModelConfig, model_cfg

    name = reference.removeprefix(HF_HUB_PREFIX).partition("@")[0]
    if (file := _local_file(reference, OPEN_CLIP_CONFIG)) is not None:
        stated = json.loads(file.read_text(encoding="utf-8")).get("model_cfg")
        if stated is None:
            raise UnknownSizeError(f"{reference} (its {OPEN_CLIP_CONFIG} has no model_cfg)")
        return stated
    if name in known_configs():
        return model_cfg(ModelConfig(**known_configs()[name]))
    architecture, size = parse_released_name(name.rpartition("/")[2])
    if size is not None:
        return model_cfg(ModelConfig(architecture=architecture, image_size=size))
    for model, tag in open_clip.list_pretrained():
        if (open_clip.get_pretrained_cfg(model, tag) or {}).get("hf_hub", "").rstrip("/") == name:
            return open_clip.get_model_config(model)
    raise UnknownSizeError(f"{name} (no local copy)")


def _hf_config(reference: str) -> dict[str, Any]:
    """The ``config.json`` of a model in the transformers format."""
    if (file := _local_file(reference, "config.json")) is not None:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    name = reference.removeprefix(HF_HUB_PREFIX).partition("@")[0]
    if name not in known_configs():
        raise UnknownSizeError(f"{name} (no local copy)")
    return dict(known_configs()[name])


def _local_file(reference: str, name: str) -> Path | None:
    """A file of a directory, or of the Hub's local copy; None if it is missing."""
    if not is_on_hub(reference):
        file = Path(reference) / name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = reference.removeprefix(HF_HUB_PREFIX).partition("@")
    found = try_to_load_from_cache(repository, name, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


@functools.cache
def llm_size(reference: str) -> LlmSize:
    """The language model that a reference names, or that of a LLaVA.

    Raises:
        UnknownSizeError: its size is unknown.
    """
    from transformers import AutoConfig

    config = _hf_config(reference)
    config = {**config.get("text_config", config)}
    try:
        return _llm_size(AutoConfig.for_model(config.pop("model_type", "llama"), **config))
    except ValueError:  # a type that transformers does not know, or no causal language model
        raise UnknownSizeError(f"{reference} (expected a causal language model of transformers)") from None


def new_llm_size(settings: SmallLlamaConfig) -> LlmSize:
    """The language model of the stage ``llm_pretrain``."""
    from transformers import LlamaConfig

    return _llm_size(
        LlamaConfig(
            vocab_size=settings.vocab_size,
            hidden_size=settings.hidden_size,
            intermediate_size=int(settings.hidden_size * settings.mlp_ratio),
            num_hidden_layers=settings.num_hidden_layers,
            num_attention_heads=settings.num_attention_heads,
            tie_word_embeddings=False,
        )
    )


def _llm_size(config: Any) -> LlmSize:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(value.numel() for value in model.parameters())
    embeddings = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embeddings
    return LlmSize(
        parameters=parameters,
        multiplied=parameters if tied else parameters - embeddings.numel(),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
    )


def projector_size(config: ProjectorConfig, vision: VisionSize, llm: LlmSize) -> tuple[int, int]:
    """Parameters of a projector, and its number of LLM tokens per image.

    Raises:
        UserError: it does not fit the tower's grid.
    """
    shape = ProjectorShape(patches=vision.tokens, width=vision.width, llm=llm.width)
    with torch.device("meta"):
        module = build_projector(config, shape)
    return sum(value.numel() for value in module.parameters()), num_output_tokens(config, shape)
