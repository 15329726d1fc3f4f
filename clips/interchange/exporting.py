"""Export encoder directories as models of other libraries; ``clips export --format``."""

from __future__ import annotations

import importlib
from pathlib import Path

from clips.core.artifact import atomic_artifact_dir, log_info, write_manifest
from clips.errors import UserError
from clips.model_card import license_from_manifest, write_card
from clips.model_refs import CAPTIONER_WEIGHTS

EXPORT_FORMATS: dict[str, str] = {  # modules with export(encoder, directory) -> features
    "hf_clip": "clips.interchange.hf_clip",
    "hf_dual": "clips.interchange.hf_dual",
    "hf_siglip": "clips.interchange.hf_siglip",
    "timm": "clips.interchange.timm_tower",
}
_TOLERANCE = 1e-5  # of unit features; a larger difference means that the conversion is wrong


def export_encoder(encoder_directory: str | Path, output: str, *, format: str, license: str | None = None) -> None:
    """Write the encoder in ``encoder_directory`` to ``output`` in a format of ``EXPORT_FORMATS``.

    Raises:
        UserError: the other library cannot compute this encoder, or the features would differ.
    """
    from clips.encoder import load_encoder
    from clips.interchange.parity import compare
    from clips.model.loading import silence_transformers

    source = Path(encoder_directory)
    encoder = load_encoder(source)
    if "text_cfg" not in encoder.config["model_cfg"]:
        raise UserError(f"{source}: expected an encoder with a text tower; llava-bridge reads this directory as it is")
    license = license or license_from_manifest(source)
    with atomic_artifact_dir(output, kind=format) as partial:
        with silence_transformers():
            features = importlib.import_module(EXPORT_FORMATS[format]).export(encoder, partial)
            parity = compare(encoder, features, partial if format.startswith("hf_") else None)
        if parity.features is None or not parity.features <= _TOLERANCE:
            raise UserError(f"{format}: features would differ by {parity.features:.1e}; use another format")
        manifest = write_manifest(
            partial,
            kind=format,
            config={"encoder": str(source), "output": output, "format": format},
            parents={"encoder": source},
            license=license,
            **parity.record(),
        )
        write_card(partial, format, manifest=manifest, license=license, cfg=encoder.config["model_cfg"])
    if (source / CAPTIONER_WEIGHTS).is_file():
        log_info(f"{output}: without the captioner, which {format} does not support")
    log_info(f"{output}: {format}; {parity}")
