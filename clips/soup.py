"""Model soups: the mean of several encoders' weights.

    clips soup runs/a runs/b runs/c --output runs/soup

Source: arXiv 2203.05482, the uniform soup.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from clips.core.artifact import HASH_EXCLUDED_FILES, atomic_artifact_dir, log_info, write_manifest
from clips.errors import UserError, error_reason
from clips.model_card import license_from_manifest, write_card
from clips.model_refs import (
    CAPTIONER_CONFIG,
    CAPTIONER_WEIGHTS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    find_open_clip_weights,
    require_encoder_config,
)

if TYPE_CHECKING:
    from torch import Tensor

_COPIED_SUFFIXES = (".json", ".txt", ".model")  # of configs and tokenizers


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoupConfig:
    """Average the weights of encoders with the same initial weights.

    Args:
        encoders: two or more encoder directories of one architecture; captioners are averaged if all have one.
        output: the encoder directory to write.
    """

    encoders: tuple[str, ...]
    output: str

    def __post_init__(self) -> None:
        if len(self.encoders) < 2:
            raise UserError(f"encoders: expected two or more directories, got {len(self.encoders)}")


def run_soup(config: SoupConfig) -> None:
    """Run `clips soup`."""
    encoders = [Path(path) for path in config.encoders]
    settings = [require_encoder_config(encoder) for encoder in encoders]
    for encoder, found in zip(encoders, settings, strict=True):
        if found != settings[0]:
            raise UserError(f"{encoder / OPEN_CLIP_CONFIG}: expected the settings of {encoders[0]}, which differ")
    with atomic_artifact_dir(config.output, kind="encoder") as partial:
        for path in encoders[0].iterdir():
            if path.suffix in _COPIED_SUFFIXES and path.name not in HASH_EXCLUDED_FILES:
                shutil.copyfile(path, partial / path.name)
        _average([find_open_clip_weights(encoder) for encoder in encoders], partial / OPEN_CLIP_WEIGHTS)
        if all((encoder / CAPTIONER_WEIGHTS).is_file() for encoder in encoders):
            _average([encoder / CAPTIONER_WEIGHTS for encoder in encoders], partial / CAPTIONER_WEIGHTS)
        else:
            (partial / CAPTIONER_CONFIG).unlink(missing_ok=True)
        parents = {f"{number} {encoder.name}": encoder for number, encoder in enumerate(encoders)}
        licenses = set(map(license_from_manifest, encoders))
        license = licenses.pop() if len(licenses) == 1 else "unknown"
        write_manifest(partial, kind="encoder", config=config, parents=parents, license=license)
        write_card(partial, "soup", config=config, license=license, cfg=settings[0]["model_cfg"])
    log_info(f"{config.output}: the mean of {len(encoders)} encoders")


def _average(files: list[Path], output: Path) -> None:
    """Write the mean of the floating-point weights; integers, such as batch norm counts, are the first file's."""
    import torch
    from safetensors.torch import save_file

    from clips.model.loading import read_weights

    total: dict[str, Tensor] = {}
    for number, path in enumerate(files):
        try:
            weights = read_weights(path)
            if number and weights.keys() != total.keys():
                raise UserError(f"{path}: expected the same weights as in {files[0]}")
            for name, value in weights.items():
                if number == 0:
                    total[name] = value.double() if value.is_floating_point() else value
                elif value.is_floating_point():
                    total[name] += value
        except UserError:
            raise
        except Exception as error:  # of safetensors, or of torch for other shapes
            raise UserError(f"{path}: cannot be averaged ({error_reason(error)})") from None
    for name, value in total.items():
        total[name] = (value / len(files)).float() if value.dtype == torch.float64 else value
    save_file(total, output)
