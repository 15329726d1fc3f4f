"""``llava-bridge swap``: replaces a LLaVA's encoder and projector; LLM, tokenizer and template stay.

llava-bridge swap runs/mine-llava --encoder encoders/other --output runs/swapped
llava-bridge train --llava runs/swapped --output runs/swapped-trained --align.data … --instruct.data …
"""

from __future__ import annotations

import dataclasses

from clips.core.artifact import atomic_artifact_dir, check_free, log_info, write_manifest
from clips.model_refs import resolve_model_dir
from llava_bridge.encoders import check_encoder_files, encoder_commits, local_paths
from llava_bridge.model.assembly_config import AssemblyConfig
from llava_bridge.model.llava_checks import check_llava_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwapConfig(AssemblyConfig):
    """Replace the encoder of a LLaVA. LLM, tokenizer and chat template stay; the projector is new and untrained.

    Args:
        llava: the LLaVA directory, in the transformers format, or ORG/NAME on the Hub.
        encoder: an encoder directory, ``hf-hub:ORG/NAME``, ``timm:NAME`` or ``transformers:DIRECTORY``, as for
            ``llava-bridge train``.
        output: the LLaVA directory to write; ``llava-bridge train --llava`` trains it.
        chat_template: ``auto`` (the LLaVA's own) or a template's name.
    """

    llava: str
    encoder: str
    output: str


def run_swap(config: SwapConfig) -> None:
    """Write the LLaVA with the new encoder. UserError: LLaVA or encoder are missing, incomplete or incompatible."""
    check_llava_dir(config.llava)
    check_encoder_files(config.encoder)
    check_free(config.output)
    from transformers import AutoConfig

    from llava_bridge.model.build import LlavaParts, build_llava
    from llava_bridge.model.llava_files import convert_tower_to_transformers, save_llava

    model, processor = build_llava(LlavaParts.of(config, encoder=config.encoder, llm=config.llava))
    directory = resolve_model_dir(config.llava, "llava")
    stored = AutoConfig.from_pretrained(directory).dtype
    if stored is not None:  # encoder and projector stay in float32, as at the start of training
        model.model.language_model.to(stored)
        model.lm_head.to(stored)
    convert_tower_to_transformers(model)
    with atomic_artifact_dir(config.output, kind="llava") as partial:
        log_info(f"writing {config.output}")
        save_llava(model, partial)
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
        "--output … --align.data … --instruct.data …`, a first try with --align.max_steps 20 --instruct.max_steps 20"
    )
