"""``llava-bridge swap``: replaces a LLaVA's encoder and projector; LLM, tokenizer and template stay.

llava-bridge swap runs/mine-llava --encoder encoders/other --output runs/swapped
llava-bridge train --llava runs/swapped --output runs/swapped-trained --align.data … --instruct.data …
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from pathlib import Path

from clips.commandline.progress import log_if_slow
from clips.core.artifact import atomic_artifact_dir, check_free, read_manifest, write_manifest
from clips.errors import UserError
from clips.model.loading import has_adapters
from clips.safe_text import log_info
from clips.typed_data import changed_settings, from_plain
from llava_bridge.encoders import resolve_encoder
from llava_bridge.model.assembly_config import AssemblyConfig
from llava_bridge.model.llava_checks import resolve_llava_dir
from llava_bridge.training.train_config import STAGE_NAMES, LlavaTrainConfig, StageConfig


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
    """Write the LLaVA with the new encoder.

    Raises:
        UserError: LLaVA or encoder are missing, incomplete or incompatible.
    """
    directory = resolve_llava_dir(config.llava, "llava")
    encoder = resolve_encoder(config.encoder)
    check_free(config.output)
    from transformers import AutoConfig

    from llava_bridge.model.build import LlavaParts, build_llava
    from llava_bridge.model.llava_files import convert_tower_to_transformers, save_llava

    with log_if_slow(f"reading {directory}"):
        model, processor = build_llava(LlavaParts.of(config, encoder=encoder.reference, llm=str(directory)))
    stored = AutoConfig.from_pretrained(directory, trust_remote_code=False).dtype
    # encoder and projector stay in float32, as at the start of training, and so does what adapters were merged into
    if stored is not None and not has_adapters(directory):
        model.model.language_model.to(stored)
        model.lm_head.to(stored)
    convert_tower_to_transformers(model)
    with atomic_artifact_dir(config.output, kind="llava") as partial:
        log_info(f"writing {config.output}")
        save_llava(model, partial)
        processor.save_pretrained(partial)
        parents = {"llava": directory} | ({"encoder": encoder.local} if encoder.local else {})
        write_manifest(
            partial,
            kind="llava",
            config=config,
            seed=config.seed,
            data={"encoder": encoder.commit} if encoder.commit else {},
            parents=parents,
            projector="untrained",
        )
    words = ["llava-bridge", "train", "--llava", config.output, "--output", f"{config.output}-trained"]
    stages = _training_stages(directory)
    if "align" in stages:  # else nothing would train the projector before the LLM
        words += [] if (*stages,) == STAGE_NAMES else ["--stages", json.dumps([*stages])]
        for name, stage in stages.items():
            words += [f"--{name}", json.dumps(changed_settings(stage), ensure_ascii=False)]
        told = f"the projector is untrained; with data, steps and rates of {config.llava}"
        log_info(f"{config.output}: {told}:\n{shlex.join(words)}")
    else:
        log_info(
            f"{config.output}: the projector is untrained; train it by `{shlex.join(words)} --align.data … "
            "--instruct.data …`"
        )


def _training_stages(directory: Path) -> dict[str, StageConfig]:
    """The settings of each stage of this suite's training of a LLaVA; none if it was trained elsewhere."""
    with contextlib.suppress(UserError, KeyError):
        trained = from_plain(LlavaTrainConfig, read_manifest(directory)["config"])
        return {name: trained.stage(name) for name in trained.stages}
    return {}
