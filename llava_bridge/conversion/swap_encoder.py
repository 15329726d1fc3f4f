"""``llava-bridge swap``: replaces a LLaVA's encoder and projector; LLM, tokenizer and template stay.

llava-bridge swap runs/mine-llava --encoder encoders/other --output runs/swapped
llava-bridge train --llava runs/swapped --output runs/swapped-trained --align.data … --instruct.data …
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from clips.core.artifact import atomic_artifact_dir, check_overwritable, log_info, write_manifest
from clips.errors import UserError
from clips.model_refs import resolve_model_dir
from llava_bridge.encoders.spec import check_encoder_files, encoder_commits, local_paths
from llava_bridge.model.anyres import ImageAspectRatio, check_pinpoints
from llava_bridge.model.llava_checks import check_llava_dir
from llava_bridge.projectors import ProjectorConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwapConfig:
    """Replace the encoder of a LLaVA. LLM, tokenizer and chat template stay; the projector is new and untrained.

    Args:
        llava: the LLaVA directory, in the transformers format, or ORG/NAME on the Hub.
        encoder: an encoder directory, ``hf-hub:ORG/NAME``, ``timm:NAME`` or ``transformers:DIRECTORY``, as for
            ``llava-bridge train``.
        output: the LLaVA directory to write; ``llava-bridge train --llava`` trains it.
        image_size: image size in pixels; null uses the encoder's own.
        vision_feature_layer: hidden state of the encoder that the LLM sees, or several, concatenated; null: -2 for most
            ViTs and CLIP's ResNets, -1 for timm's others, RADIO, InternVL and Qwen-VL. Each of ``several:`` uses this
            one, or its own default.
        vision_feature_select_strategy: ``default`` drops the class token, ``full`` keeps it, as in transformers
            (LLaVA: ``patch``, ``cls_patch``).
        image_aspect_ratio: how images become squares: ``squash``, ``pad`` with the encoder's mean color
            (LLaVA-1.5's), or a center ``crop``; or ``anyres``, LLaVA-NeXT's: a base image and tiles at full resolution.
        image_grid_pinpoints: with ``anyres``: the heights and widths in pixels that images are resized into before they
            are cut into tiles; null uses LLaVA-NeXT's, 1 × 2, 2 × 1, 2 × 2, 3 × 1 and 1 × 3 tiles.
        projector: maps the encoder's features to tokens of the LLM.
        chat_template: ``auto`` (the LLaVA's own) or a template's name.
        seed: seed of the projector's weights.
    """

    llava: str
    encoder: str
    output: str
    image_size: int | None = None
    vision_feature_layer: int | list[int] | None = None
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    image_aspect_ratio: ImageAspectRatio = "squash"
    image_grid_pinpoints: list[list[int]] | None = None
    projector: ProjectorConfig = dataclasses.field(default_factory=ProjectorConfig)
    chat_template: str = dataclasses.field(
        default="auto", metadata={"known": "llava_bridge.chat_templates:CHAT_TEMPLATES"}
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size: expected at least 1, got {self.image_size}")
        check_pinpoints(self.image_aspect_ratio, self.image_grid_pinpoints)
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")


def run_swap(config: SwapConfig) -> None:
    """Write the LLaVA with the new encoder.

    Raises:
        UserError: LLaVA or encoder are missing, incomplete or incompatible.
    """
    check_llava_dir(config.llava)
    check_encoder_files(config.encoder)
    check_overwritable(config.output, "llava")
    from transformers import AutoConfig

    from llava_bridge.model.build import LlavaParts, build_llava, convert_tower_to_transformers

    names = {field.name for field in dataclasses.fields(LlavaParts)} - {"llm"}
    parts = {name: getattr(config, name) for name in names}
    model, processor = build_llava(LlavaParts(llm=config.llava, **parts))
    directory = resolve_model_dir(config.llava, "llava")
    stored = AutoConfig.from_pretrained(directory).dtype
    if stored is not None:  # encoder and projector stay in float32, as at the start of training
        model.model.language_model.to(stored)
        model.lm_head.to(stored)
    convert_tower_to_transformers(model)
    with atomic_artifact_dir(config.output, kind="llava") as partial:
        log_info(f"writing {config.output}")
        model.save_pretrained(partial, max_shard_size="5GB")
        processor.save_pretrained(partial)
        parents = {"llava": str(directory), **local_paths(config.encoder)}
        write_manifest(
            partial,
            kind="llava",
            config=config,
            seed=config.seed,
            data=encoder_commits(config.encoder),
            parents=parents,
            projector="untrained",
        )
    log_info(
        f"{config.output}: the projector is untrained; train it by `llava-bridge train --llava {config.output} "
        "--output … --align.data … --instruct.data …`"
    )
