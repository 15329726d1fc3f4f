"""Encoder directories: written in open_clip's hub layout, read back with nothing but open_clip.

clips export runs/clips --output encoders/clips
clips export runs/clips --output towers/clips --format timm
python -c "import open_clip; open_clip.create_model_and_transforms('local-dir:encoders/clips')"
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from clips.artifact import MANIFEST, artifact_directory, read_manifest, say, write_file, write_manifest
from clips.captioner import Captioner, CaptionerShape
from clips.checkpoint import CONFIG as RUN_CONFIG
from clips.checkpoint import checkpoints, load_exported, read_loop
from clips.errors import UserError, reason_of, suggest
from clips.model import ClipsModel, ModelConfig, build_model
from clips.modelcard import write_model_card
from clips.recipes import RecipeConfig
from clips.rundir import read_run_config
from clips.runlog import METRICS
from clips.tokenizer import ClipsTokenizer

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
CAPTIONER_CONFIG = "captioner_config.json"
CAPTIONER_WEIGHTS = "captioner.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the encoder directory of a training run that is still going on, or an encoder for another library.

    Args:
        run: the run's directory, whose latest checkpoint is taken, or a checkpoint's; for the formats of other
            libraries also an encoder directory.
        output: the directory to write.
        format: open_clip (the encoder directory), hf_clip (transformers' CLIPModel), hf_siglip (its SiglipModel),
            hf_dual (its VisionTextDualEncoderModel) or timm (the image tower alone). A format that cannot compute
            what the encoder does says why.
        licence: of the weights, for the model card.
    """

    run: str
    output: str
    format: str = "open_clip"
    licence: str | None = None

    def __post_init__(self) -> None:
        from clips.interchange.exporting import EXPORTS

        if self.format not in ("open_clip", *EXPORTS):
            raise suggest(self.format, ("open_clip", *EXPORTS), "format")


def export(config: ExportConfig) -> None:
    """Carry out ``config``."""
    if config.format != "open_clip":
        from clips.interchange.exporting import export_as

        return export_as(config)
    checkpoint = _find_checkpoint(Path(config.run))
    recorded, loop = read_run_config(checkpoint), read_loop(checkpoint)
    if Path(config.output).exists():
        raise UserError(f"{config.output}: exists already; choose another output or remove it")
    model = _rebuild(recorded, checkpoint)
    with artifact_directory(config.output, kind="encoder") as partial:
        write_encoder(model, partial)
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=recorded,
            seed=recorded["seed"],
            parents={"checkpoint": checkpoint},
            steps=loop.step,
            samples_seen=loop.samples_seen,
            seconds=loop.seconds,
            last=_last_validation(checkpoint, loop.step),
            licence=config.licence,
        )
        write_model_card(partial, manifest)
    say(f"{config.output}: encoder after {loop.step} steps")


def _find_checkpoint(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    if (path / "loop.json").is_file():
        return path
    if found := checkpoints(path):
        return found[-1]
    if (path / MANIFEST).is_file():
        raise UserError(f"{path}: the training is finished and this is already the encoder directory")
    raise UserError(f"{path}: no checkpoints in it; expected the output of `clips train`, or a checkpoint")


def _last_validation(checkpoint: Path, step: int) -> dict[str, Any]:
    """The last entry of the run's metrics.jsonl up to ``step`` that validation is in; none where there is none."""
    for folder in checkpoint.resolve().parents[:2]:
        if (folder / METRICS).is_file():
            entries = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
            validated = [entry for entry in entries if entry["step"] <= step and any("val_" in name for name in entry)]
            return validated[-1] if validated else {}
    return {}


def _rebuild(recorded: dict[str, Any], checkpoint: Path) -> ClipsModel:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_class_arguments(RecipeConfig, "recipe")
    try:
        seed = int(recorded["seed"])
        parts = parser.instantiate(parser.parse_object({name: recorded[name] for name in ("model", "recipe")}))
    except (KeyError, TypeError, ValueError, ArgumentError) as error:
        where = checkpoint / RUN_CONFIG
        raise UserError(f"{where}: expected the config of a training run ({reason_of(error)})") from None
    # The checkpoint holds every weight: what training began with need not be there any more.
    bare = dataclasses.replace(parts.model, pretrained_trunk=None, pretrained=None)
    model = build_model(bare, parts.recipe, seed)
    load_exported(checkpoint, model)
    return model


def write_encoder(model: ClipsModel, directory: Path) -> None:
    """Write towers, tokenizer, preprocessing and, where there is one, the captioner into ``directory``."""
    config = {"model_cfg": model.model_cfg, "preprocess_cfg": model.preprocess_cfg}
    write_file(directory / CONFIG, json.dumps(config, indent=2) + "\n")
    _write_weights(model.clip, directory / WEIGHTS)
    ClipsTokenizer(model.context_length).save(directory)
    if model.captioner is not None:
        shape = dataclasses.asdict(model.captioner.config)
        write_file(directory / CAPTIONER_CONFIG, json.dumps(shape, indent=2) + "\n")
        _write_weights(model.captioner, directory / CAPTIONER_WEIGHTS)


def _write_weights(module: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, path)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A loaded encoder directory.

    Args:
        model: the open_clip model, in evaluation mode, on CPU, float32.
        preprocess: picture → (3, size, size) float tensor.
        tokenizer: list of texts → (n, context length) int64 tokens.
        config: the directory's open_clip_config.json.
    """

    model: Any
    preprocess: Any
    tokenizer: Any
    config: dict[str, Any]


def load_encoder(directory: str | Path) -> Encoder:
    """Load an encoder directory, ours or any other of open_clip's hub layout.

    Raises:
        UserError: the directory or its config or weights are missing, broken or do not fit together.
    """
    directory = Path(directory)
    config = _read_config(directory)
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{weights}: missing; expected the encoder's weights")
    import open_clip

    try:
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    except Exception as error:  # open_clip raises what its parts raise: torch, safetensors, transformers
        raise UserError(f"{directory}: open_clip cannot load this encoder ({reason_of(error)})") from None
    return Encoder(model.eval(), preprocess, tokenizer, config)


def load_captioner(directory: str | Path) -> Captioner:
    """The captioner of an encoder directory, in evaluation mode.

    Raises:
        UserError: the directory has none, or it is broken.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    if not (directory / CAPTIONER_WEIGHTS).is_file():
        raise UserError(
            f"{directory}: expected an encoder directory with {CAPTIONER_WEIGHTS} (a recipe with a captioner)"
        )
    try:
        shape = json.loads((directory / CAPTIONER_CONFIG).read_text(encoding="utf-8"))
        captioner = Captioner(CaptionerShape(**shape))
        captioner.load_state_dict(load_file(directory / CAPTIONER_WEIGHTS))
    except Exception as error:  # JSON, safetensors and torch each raise their own
        raise UserError(f"{directory}: its captioner cannot be loaded ({reason_of(error)})") from None
    return captioner.eval()


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; expected an encoder directory")
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected an encoder directory of open_clip's hub layout") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict) or "model_cfg" not in config:
        raise UserError(f"{path}: expected an object with 'model_cfg'")
    return config


def read_encoder_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of an encoder directory; UserError where it is one of something else."""
    manifest = read_manifest(directory)
    if manifest.get("kind") != "encoder":
        raise UserError(f"{directory}: expected an encoder directory, found one of kind '{manifest.get('kind')}'")
    return manifest
