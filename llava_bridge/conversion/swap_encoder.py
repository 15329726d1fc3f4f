"""``llava-bridge swap``: a LLaVA with another encoder, its LLM, tokenizer and template kept, its projector new.

llava-bridge swap runs/mine-llava --encoder encoders/other --output runs/swapped
llava-bridge train --llava runs/swapped --output runs/swapped-trained --align.data … --instruct.data …
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from clips.core.artifact import atomic_artifact_dir, check_overwritable, log_info, write_manifest
from clips.errors import UserError
from clips.model_refs import resolve_model_dir
from llava_bridge.encoders.encoder_checks import check_encoder_files, encoder_commits
from llava_bridge.encoders.spec import local_paths
from llava_bridge.model.anyres import ImageAspectRatio, check_pinpoints
from llava_bridge.model.llava_checks import check_llava_dir
from llava_bridge.projectors import ProjectorConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwapConfig:
    """Put another encoder into a LLaVA. LLM, tokenizer and chat template are kept; the projector is new and untrained.

    Args:
        llava: the LLaVA directory, in transformers' layout, or ORG/NAME on the hub.
        encoder: an encoder directory, ``hf-hub:ORG/NAME``, ``timm:NAME`` or ``transformers:DIRECTORY``, as for
            ``llava-bridge train``.
        output: the LLaVA directory to write; ``llava-bridge train --llava`` trains it.
        image_size: side of the pictures in pixels; None takes the encoder's own.
        vision_feature_layer: hidden state of the encoder that the LLM sees, or several, side by side; None: -2 for ViTs
            and CLIP's ResNets, -1 for timm's others. Of ``several:`` each gives this one, or its own default.
        vision_feature_select_strategy: ``default`` drops the class token, ``full`` keeps it, as in transformers
            (LLaVA: ``patch``, ``cls_patch``).
        image_aspect_ratio: how pictures become squares: ``squash``, ``pad`` with the encoder's mean color
            (LLaVA-1.5's), ``crop`` of the middle; or ``anyres``, LLaVA-NeXT's: several, an overview and tiles at full
            resolution.
        image_grid_pinpoints: with ``anyres``: the heights and widths in pixels into which pictures are fitted before
            they are cut into tiles; None takes LLaVA-NeXT's, 1 × 2, 2 × 1, 2 × 2, 3 × 1 and 1 × 3 tiles.
        projector: what makes tokens of the LLM of the encoder's features.
        chat_template: ``auto`` (the LLaVA's own) or the name of one.
        seed: of the projector's weights.
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
    """Carry out ``config``.

    Raises:
        UserError: LLaVA or encoder are missing or incomplete, or do not fit.
    """
    check_llava_dir(config.llava)
    check_encoder_files(config.encoder)
    check_overwritable(config.output, "llava")
    from transformers import AutoConfig

    from llava_bridge.model.build import LlavaParts, build_llava, convert_tower_to_transformers

    fields = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(LlavaParts) if field.name != "llm"
    }
    model, processor = build_llava(LlavaParts(llm=config.llava, **fields))
    directory = resolve_model_dir(config.llava, "llava")
    stored = AutoConfig.from_pretrained(directory).dtype
    if stored is not None:  # encoder and projector stay in float32, which is what they are trained from
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
        f"{config.output}: its projector is new and means nothing to the LLM before it is trained: `llava-bridge train "
        f"--llava {config.output} --output … --align.data … --instruct.data …`"
    )
