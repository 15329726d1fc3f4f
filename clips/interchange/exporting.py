"""Encoder directories as models of other libraries; ``clips export --format``."""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clips.artifact import MANIFEST, artifact_directory, read_manifest, say, write_manifest
from clips.errors import UserError
from clips.modelcard import write_card

if TYPE_CHECKING:
    from clips.export import ExportConfig

EXPORTS: dict[str, str] = {  # modules with write(encoder, directory) -> features
    "hf_clip": "clips.interchange.hf_clip",
    "hf_dual": "clips.interchange.hf_dual",
    "hf_siglip": "clips.interchange.hf_siglip",
    "timm": "clips.interchange.timm_tower",
}
_TOLERANCE = 1e-5  # of unit features; more means that the conversion is wrong


def export_as(config: ExportConfig) -> None:
    """Carry out a ``config`` of another format than open_clip's."""
    from clips.export import CAPTIONER_WEIGHTS, CONFIG, load_encoder

    source = Path(config.run)
    if not (source / CONFIG).is_file():
        _export_checkpoint(config)
        return
    from clips.interchange.parity import largest_difference

    module = importlib.import_module(EXPORTS[config.format])
    encoder = load_encoder(source)
    licence = config.licence or _recorded_licence(source)
    with artifact_directory(config.output, kind=config.format) as partial:
        features = module.write(encoder, partial)
        difference = largest_difference(encoder, features)
        if not difference <= _TOLERANCE:
            raise UserError(f"{config.format}: features would differ by {difference:.1e}; use another format")
        manifest = write_manifest(
            partial,
            kind=config.format,
            config=config,
            parents={"encoder": source},
            licence=licence,
            largest_difference=difference,
        )
        write_card(partial, config.format, manifest=manifest, licence=licence, cfg=encoder.config["model_cfg"])
    if (source / CAPTIONER_WEIGHTS).is_file():
        say(f"{config.output}: without the captioner, for which {config.format} has no place")
    say(f"{config.output}: {config.format}, features differ from the encoder's by {difference:.1e} at most")


def _export_checkpoint(config: ExportConfig) -> None:
    """A checkpoint becomes an encoder directory first, for a moment."""
    from clips.export import export

    with tempfile.TemporaryDirectory() as folder:
        encoder = str(Path(folder) / "encoder")
        export(dataclasses.replace(config, output=encoder, format="open_clip"))
        export_as(dataclasses.replace(config, run=encoder))


def _recorded_licence(source: Path) -> str:
    return str(read_manifest(source).get("licence") or "unknown") if (source / MANIFEST).is_file() else "unknown"
