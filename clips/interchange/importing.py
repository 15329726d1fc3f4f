"""Import encoders of other formats as encoder directories.

    clips import path/to/clip-vit-base-patch32 --output encoders/openai-b-32
    clips import epoch_32.pt --architecture ViT-B-32 --output encoders/mine

The output is verified: unmodified open_clip loads it, and if the source's own library is installed, both compute the
same features.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.core.artifact import atomic_artifact_dir, atomic_write, check_overwritable, log_info, write_manifest
from clips.errors import UserError, unknown_name_error
from clips.model_card import write_card
from clips.model_refs import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS

if TYPE_CHECKING:
    from clips.interchange.imported_encoder import ImportedEncoder

IMPORT_FORMATS: dict[str, str] = {  # modules with is_supported(path) and load(path, architecture)
    "hf_clip": "clips.interchange.hf_clip",
    "hf_siglip": "clips.interchange.hf_siglip",
    "open_clip": "clips.interchange.open_clip_format",
    "openvision_jax": "clips.interchange.openvision_jax",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Convert a model of another format to an encoder directory.

    Args:
        path: a directory in open_clip's Hub format (also published CLIPS and OpenVision models) or of transformers'
            CLIPModel or SiglipModel; or a weights file: safetensors, a torch state dict or checkpoint, or the authors'
            JAX parameters (.npz).
        output: the encoder directory to write.
        architecture: of a weights file: a CLIPS architecture, an open_clip name, or a published one
            (openvision-vit-large-patch14-224, ViT-L-14-CLIPS-336). For a SiglipModel, timm's name of its image tower.
        format: open_clip, hf_clip, hf_siglip or openvision_jax; detected from the content if not given.
        license: license of the weights; the one in the source's model card if not given.
        tolerance: largest accepted difference of unit features from the source's, if its own library is installed. Some
            SigLIP towers need more, because timm computes GELU where the source approximates it.
    """

    path: str
    output: str
    architecture: str | None = None
    format: str | None = None
    license: str | None = None
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in IMPORT_FORMATS:
            raise unknown_name_error(self.format, IMPORT_FORMATS, "format")
        if not self.tolerance > 0:
            raise UserError(f"tolerance: expected a number above 0, got {self.tolerance}")


def run_import(config: ImportConfig) -> None:
    """Run ``clips import``."""
    path = Path(config.path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    check_overwritable(config.output, "encoder")
    if Path(config.output).resolve() == path.resolve():
        raise UserError(f"output: expected another directory than {path}, which is read")
    from clips.interchange.imported_encoder import tower_shapes
    from clips.interchange.weight_mapping import conform

    name = config.format or _detect_format(path)
    imported: ImportedEncoder = importlib.import_module(IMPORT_FORMATS[name]).load(path, config.architecture)
    weights = conform(imported.weights, tower_shapes(imported.model_cfg, path), imported.where)
    license = config.license or imported.license or "unknown"
    with atomic_artifact_dir(config.output, kind="encoder") as partial:
        _write(imported, weights, partial)
        difference = _verify_features(partial, imported, config)
        manifest = write_manifest(
            partial,
            kind="encoder",
            config=config,
            parents={"source": path},
            format=name,
            architecture=config.architecture,
            license=license,
            largest_difference=difference,
        )
        write_card(partial, "imported", manifest=manifest, license=license, config=config, cfg=imported.model_cfg)
    parity = "" if difference is None else f", features differ from the source's by {difference:.1e} at most"
    log_info(f"{config.output}: encoder imported from {name}{parity}")


def _detect_format(path: Path) -> str:
    for name, module in IMPORT_FORMATS.items():
        if importlib.import_module(module).is_supported(path):
            return name
    if path.is_dir():
        from clips.interchange.hf_files import model_type

        kind = model_type(path)
        found = f"its config.json is of a '{kind}'" if kind else f"no {OPEN_CLIP_CONFIG}, no config.json"
        raise UserError(f"{path}: {found}; expected open_clip's Hub format, or transformers' CLIPModel or SiglipModel")
    raise UserError(f"{path}: expected a checkpoint that ends in .safetensors, .bin, .pt, .pth, .ckpt or .npz")


def _write(imported: ImportedEncoder, weights: dict[str, Any], directory: Path) -> None:
    from safetensors.torch import save_file

    config = {"model_cfg": imported.model_cfg, "preprocess_cfg": imported.preprocess_cfg}
    atomic_write(directory / OPEN_CLIP_CONFIG, json.dumps(config, indent=2) + "\n")
    save_file(weights, directory / OPEN_CLIP_WEIGHTS)
    imported.write_tokenizer(directory)


def _verify_features(partial: Path, imported: ImportedEncoder, config: ImportConfig) -> float | None:
    """Return the difference between the features of the new encoder and the source; None if it cannot be computed."""
    from clips.encoder import load_encoder
    from clips.interchange.parity import max_feature_difference

    encoder = load_encoder(partial)
    if imported.features is None:
        return None
    difference = max_feature_difference(encoder, imported.features)
    if not difference <= config.tolerance:
        why = f" ({imported.approximation})" if imported.approximation else ""
        raise UserError(
            f"{config.path}: open_clip's features would differ from the source's by {difference:.1e}{why}, "
            f"and tolerance is {config.tolerance:.0e}"
        )
    return difference
