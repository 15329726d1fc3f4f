"""Export encoder directories as models of other libraries; ``clips export --format``."""

from __future__ import annotations

import importlib
from pathlib import Path

from clips.core.artifact import artifact_directory, say, write_manifest
from clips.errors import UserError
from clips.modelcard import recorded_licence, write_card
from clips.references import CAPTIONER_WEIGHTS

EXPORTS: dict[str, str] = {  # modules with write(encoder, directory) -> features
    "hf_clip": "clips.interchange.hf_clip",
    "hf_dual": "clips.interchange.hf_dual",
    "hf_siglip": "clips.interchange.hf_siglip",
    "timm": "clips.interchange.timm_tower",
}
_TOLERANCE = 1e-5  # of unit features; a larger difference means that the conversion is wrong


def export_as(encoder_directory: str | Path, output: str, *, format: str, licence: str | None = None) -> None:
    """Write the encoder in ``encoder_directory`` to ``output`` in the format ``format``, an entry of ``EXPORTS``.

    Raises:
        UserError: the other library cannot compute this encoder, or the features would differ.
    """
    from clips.encoder import load_encoder
    from clips.interchange.parity import largest_difference
    from clips.model.loading import quiet

    source = Path(encoder_directory)
    encoder = load_encoder(source)
    licence = licence or recorded_licence(source)
    with artifact_directory(output, kind=format) as partial:
        with quiet():
            features = importlib.import_module(EXPORTS[format]).write(encoder, partial)
            difference = largest_difference(encoder, features)
        if not difference <= _TOLERANCE:
            raise UserError(f"{format}: features would differ by {difference:.1e}; use another format")
        manifest = write_manifest(
            partial,
            kind=format,
            config={"encoder": str(source), "output": output, "format": format},
            parents={"encoder": source},
            licence=licence,
            largest_difference=difference,
        )
        write_card(partial, format, manifest=manifest, licence=licence, cfg=encoder.config["model_cfg"])
    if (source / CAPTIONER_WEIGHTS).is_file():
        say(f"{output}: without the captioner, for which {format} has no place")
    say(f"{output}: {format}, features differ from the encoder's by {difference:.1e} at most")
