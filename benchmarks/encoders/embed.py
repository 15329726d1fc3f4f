"""Unit vectors of pictures and texts from an encoder with a text tower."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.protocol import Entries
from clips.artifact import versions
from clips.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_DECODERS = 2  # threads that open pictures while the tower computes
_ENCODER_FILE = "open_clip_config.json"


@dataclass(frozen=True, kw_only=True)
class DualEncoder:
    """An encoder ready to embed.

    Args:
        model: has ``encode_image(pixels (B, 3, H, W))`` and ``encode_text(tokens (B, L))``.
        preprocess: PIL picture → (3, H, W).
        tokenizer: list of texts → (B, L).
        how: how the model takes its input, as its directory records it, as protocol entries.
        device: where it runs.
        precision: the type that the towers are cast to.
    """

    model: Any
    preprocess: Callable[[Any], torch.Tensor]
    tokenizer: Callable[[list[str]], torch.Tensor]
    how: Entries
    device: str
    precision: str


def load_dual_encoder(path: str, device: str, precision: str) -> DualEncoder:
    """Load an encoder directory: ours, or any in open_clip's hub layout.

    Raises:
        UserError: not such a directory.
    """
    if not (Path(path) / _ENCODER_FILE).is_file():
        raise UserError(f"encoder: {path}: expected a directory with {_ENCODER_FILE}")
    import torch

    from clips.encoder import load_encoder

    precision = "float32" if precision == "auto" else precision
    encoder = load_encoder(path)
    model = encoder.model.to(device=device, dtype=getattr(torch, precision)).eval()
    return DualEncoder(
        model=model,
        preprocess=encoder.preprocess,
        tokenizer=encoder.tokenizer,
        how=_how(model, path),
        device=device,
        precision=precision,
    )


def computed_by(encoder: DualEncoder) -> Entries:
    """What the harness runs an encoder with, as protocol entries. A build (``2.9.0+cpu``) is no other version."""
    found = {name: versions()[name].partition("+")[0] for name in ("torch", "open_clip_torch")}
    return {"precision": encoder.precision, **found}


def _how(model: Any, path: str) -> Entries:
    """Resolution, resize and interpolation, from open_clip's own record of them."""
    settings = getattr(model.visual, "preprocess_cfg", None)
    if not settings:
        settings = json.loads((Path(path) / _ENCODER_FILE).read_text(encoding="utf-8")).get("preprocess_cfg", {})
    size = settings.get("size") or model.visual.image_size
    return {
        "input_resolution": max(size) if isinstance(size, list | tuple) else int(size),
        "input_resize": str(settings.get("resize_mode", "shortest")),
        "input_interpolation": str(settings.get("interpolation", "bicubic")),
    }


def embed_images(
    encoder: DualEncoder, opener: Callable[[int], Image], names: Sequence[str], batch_size: int
) -> torch.Tensor:
    """(N, D) float32 unit vectors of the pictures ``opener(0) … opener(N - 1)``.

    Raises:
        UserError: a picture cannot be opened, or its features are not finite; it is named.
    """
    import torch

    def prepare(index: int) -> torch.Tensor:
        return encoder.preprocess(opener(index))

    features = []
    with torch.inference_mode(), ThreadPoolExecutor(_DECODERS) as pool:
        for batch in _ahead(pool, prepare, len(names), batch_size):
            features.append(_unit(encoder.model.encode_image(_place(encoder, torch.stack(batch)))))
    return _finite(torch.cat(features), names, "picture")


def embed_texts(encoder: DualEncoder, texts: Sequence[str], batch_size: int) -> torch.Tensor:
    """(M, D) float32 unit vectors of the texts.

    Raises:
        UserError: features that are not finite; the text is named.
    """
    import torch

    features = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            tokens = encoder.tokenizer(list(texts[start : start + batch_size])).to(encoder.device)
            features.append(_unit(encoder.model.encode_text(tokens)))
    return _finite(torch.cat(features), texts, "text")


def _ahead(pool: ThreadPoolExecutor, prepare: Callable[[int], Any], count: int, batch_size: int) -> Iterator[list[Any]]:
    """Batches of prepared items; the next batch is prepared while the caller works on this one."""
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    waiting = [pool.submit(prepare, index) for index in batches[0]]
    for following in [*batches[1:], range(0)]:
        coming = [pool.submit(prepare, index) for index in following]
        yield [future.result() for future in waiting]
        waiting = coming


def _place(encoder: DualEncoder, pixels: torch.Tensor) -> torch.Tensor:
    import torch

    dtype = getattr(torch, encoder.precision)
    return pixels.to(device=encoder.device, dtype=dtype, memory_format=torch.channels_last)  # faster for convolutions


def _unit(features: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.normalize(features.float(), dim=-1)


def _finite(features: torch.Tensor, names: Sequence[str], what: str) -> torch.Tensor:
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"the encoder gives features that are not finite for {what} '{names[broken[0]]:.100}'{more}")
    return features
