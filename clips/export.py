"""The encoder of an unfinished training, and encoders for transformers.

clips export runs/clips --output encoders/clips
clips export encoders/clip --output transformers/clip --format hf_clip
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from clips.core.artifact import MANIFEST, atomic_artifact_dir, check_free, read_manifest, write_manifest
from clips.core.run_log import METRICS_FILE, read_entries
from clips.errors import UserError, error_reason, unknown_name_error
from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig
from clips.model_card import write_card, write_model_card
from clips.model_refs import CAPTIONER_WEIGHTS, OPEN_CLIP_CONFIG
from clips.safe_text import log_info
from clips.training.run_dir import CONFIG_FILE as RUN_CONFIG
from clips.training.run_dir import TRAIN_STATE_FILE, list_checkpoints, read_run_config, read_train_state
from clips.training.train_config import completed_stages
from clips.typed_data import from_plain

FORMATS = ("open_clip", "hf_clip", "hf_siglip")
_TOLERANCE = 1e-5  # of unit features; a larger difference means that the conversion is wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the encoder directory of an unfinished training run, or an encoder for transformers.

    Args:
        checkpoint: the directory of a run, for its latest checkpoint, or of a checkpoint; for the formats of
            transformers also an encoder directory.
        output: the directory to write.
        format: open_clip (the encoder directory), hf_clip (transformers' CLIPModel) or hf_siglip (its SiglipModel).
            Raises an error if the format cannot represent the encoder.
        license: license of the weights, for the model card.
    """

    checkpoint: str
    output: str
    format: str = "open_clip"
    license: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown_name_error(self.format, FORMATS, "format")


def run_export(config: ExportConfig) -> None:
    """Run `clips export`."""
    check_free(config.output)
    if config.format == "open_clip":
        _export_checkpoint(config)
    elif (Path(config.checkpoint) / OPEN_CLIP_CONFIG).is_file():
        _export_to_transformers(config)
    else:
        with tempfile.TemporaryDirectory() as directory:
            encoder = str(Path(directory) / "encoder")
            _export_checkpoint(dataclasses.replace(config, output=encoder))
            _export_to_transformers(dataclasses.replace(config, checkpoint=encoder))


def _export_checkpoint(config: ExportConfig) -> None:
    path = Path(config.checkpoint)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    checkpoints = [path] if (path / TRAIN_STATE_FILE).is_file() else list_checkpoints(path)
    if not checkpoints and (path / MANIFEST).is_file():
        raise UserError(f"{path}: the training is finished and this is already the encoder directory")
    if not checkpoints:
        raise UserError(f"{path}: no checkpoints in it; expected the output of `clips train`, or a checkpoint")
    checkpoint = checkpoints[-1]
    recorded, state = read_run_config(checkpoint), read_train_state(checkpoint)
    where = checkpoint / RUN_CONFIG
    try:
        seed = int(recorded["seed"])
        model_config = from_plain(ModelConfig, recorded["model"], what=f"{where}: model")
        recipe = from_plain(RecipeConfig, recorded["recipe"], what=f"{where}: recipe")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: expected the config of a training run ({error_reason(error)})") from None
    from clips.encoder import write_encoder
    from clips.method.clips_model import build_model
    from clips.training.checkpoint import load_export_weights

    # The checkpoint has every weight; the initial weights may be gone.
    model = build_model(model_config.without_initial_weights(), recipe, seed, preprocess=state.preprocess)
    load_export_weights(checkpoint, model)

    validated: dict[str, Any] = {}  # the last entry with validation metrics up to the checkpoint's step
    log = next((one / METRICS_FILE for one in checkpoint.resolve().parents[:2] if (one / METRICS_FILE).is_file()), None)
    for entry in read_entries(log) if log else ():
        if entry.get("step", state.step) <= state.step and any("val_" in name for name in entry):
            validated = entry
    done: dict[str, Any] = {"steps": state.step, "samples_seen": state.samples_seen, "seconds": state.seconds}
    with atomic_artifact_dir(config.output, kind="encoder") as partial:
        write_encoder(model, partial)
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=recorded,
            seed=recorded["seed"],
            data={"sources": state.sources},
            parents={"checkpoint": checkpoint},
            stages=completed_stages(recorded, done, model.image_size),
            **done,
            last=validated,
            license=config.license or recorded.get("license"),
        )
        write_model_card(partial, manifest)
    log_info(f"{config.output}: encoder after {state.step} steps")


def _export_to_transformers(config: ExportConfig) -> None:
    """Write the encoder in transformers' format.

    Raises:
        UserError: transformers cannot compute it, or its features would differ.
    """
    from clips.encoder import load_encoder
    from clips.interchange import hf_clip, hf_siglip
    from clips.interchange.parity import compare
    from clips.model.loading import silence_transformers

    source = Path(config.checkpoint)
    encoder = load_encoder(source)
    if "text_cfg" not in encoder.config["model_cfg"]:
        raise UserError(f"{source}: expected an encoder with a text tower; llava-bridge reads this directory as it is")
    export = {"hf_clip": hf_clip.export, "hf_siglip": hf_siglip.export}[config.format]
    recorded = read_manifest(source) if (source / MANIFEST).is_file() else {}
    license = config.license or str(recorded.get("license") or "unknown")
    with atomic_artifact_dir(config.output, kind=config.format) as partial:
        with silence_transformers():
            parity = compare(encoder, export(encoder, partial), partial)
        if parity.largest_difference is None or not parity.largest_difference <= _TOLERANCE:
            raise UserError(f"{config.format}: features would differ by {parity.largest_difference:.1e}")
        manifest = write_manifest(
            partial,
            kind=config.format,
            config={"encoder": str(source), "output": config.output, "format": config.format},
            parents={"encoder": source},
            license=license,
            **vars(parity),
        )
        write_card(partial, "exported", manifest=manifest, license=license)
    if (source / CAPTIONER_WEIGHTS).is_file():
        log_info(f"{config.output}: without the captioner, which {config.format} does not support")
    log_info(f"{config.output}: {config.format}; {parity}")
