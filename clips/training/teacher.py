"""The teacher of a distillation: the features of a frozen encoder, computed once for each image and text."""

from __future__ import annotations

import concurrent.futures
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clips.core.artifact import directory_hash
from clips.data.images import InvalidImageError, decode_image
from clips.encoder import LoadedEncoder, load_encoder
from clips.errors import UserError
from clips.method.distillation import DistillationConfig, teacher_name
from clips.model.feature_cache import FeatureCache
from clips.model.loading import read_weights
from clips.model.towers import ImageTower
from clips.model_refs import (
    TRANSFORMERS_PREFIX,
    find_open_clip_weights,
    resolve_encoder_dir,
    resolve_model_dir,
)
from clips.transformers_encoder import TransformersEncoder, load_transformers_encoder

_FIELD = "recipe.distillation.teacher"
_BATCH = 64  # images or texts that are encoded at a time
_THREADS = min(8, os.cpu_count() or 1)  # that decode


class Teacher:
    """A frozen encoder whose features are read from the cache, or computed.

    Images have its own preprocessing, without augmentation, so that their features are computed once.

    Args:
        config: of the distillation.
        device: computes the features.

    Raises:
        UserError: no such encoder, it has no text tower, or no logit scale and the config neither.
    """

    def __init__(self, config: DistillationConfig, device: torch.device) -> None:
        directory = _directory(config.teacher)
        encoder: LoadedEncoder | TransformersEncoder = (
            load_transformers_encoder(directory, _FIELD)
            if config.teacher.startswith(TRANSFORMERS_PREFIX)
            else load_encoder(directory)
        )
        module: Any = getattr(encoder.model, "model", encoder.model)
        if isinstance(module, ImageTower):
            raise UserError(f"{_FIELD}: {config.teacher}: expected an encoder with a text tower")
        own: Any = getattr(module, "logit_scale", None)
        if config.logit_scale is None and own is None:
            raise UserError(f"recipe.distillation.logit_scale: expected a number: {config.teacher} has none")
        self.logit_scale = own.detach().exp().item() if config.logit_scale is None else config.logit_scale
        self.encoder, self.device = encoder, device
        module.requires_grad_(False).to(device)
        self.images, self.texts = (FeatureCache(module, module, f"-{kind}") for kind in ("image", "text"))
        # Of all files, because preprocessing and tokenizer determine the features, too.
        self.images.weights = self.texts.weights = directory_hash(directory)[:32]

    def features(self, batch: Mapping[str, Any], *, bf16: bool = False) -> dict[str, Tensor]:
        """Return the features (B, D) of the teacher's images and texts in ``batch``, by name, of unit length.

        Those of images are multiplied by the logit scale. With ``bf16`` they are computed under autocast.
        """
        found = {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            for name, values in batch.items():
                if name == teacher_name("image"):
                    found[name] = self.logit_scale * self._collect(self.images, values, self._encode_images)
                elif name.startswith(teacher_name("")):
                    found[name] = self._collect(self.texts, [text.encode() for text in values], self._encode_texts)
        return found

    def _collect(self, cache: FeatureCache, values: Sequence[bytes], encode: Callable[[list[bytes]], Tensor]) -> Tensor:
        def compute(rows: list[int]) -> Tensor:
            parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
            found = torch.cat([encode([values[row] for row in part]).float() for part in parts])
            return F.normalize(found, dim=-1)

        return cache.collect([hashlib.blake2b(value, digest_size=16).hexdigest() for value in values], compute)

    def _encode_images(self, files: list[bytes]) -> Tensor:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            pixels = list(pool.map(self._preprocess, files))
        return self.encoder.model.encode_image(torch.stack(pixels).to(self.device))

    def _preprocess(self, file: bytes) -> Tensor:
        try:
            return self.encoder.preprocess(decode_image(file))
        except InvalidImageError as error:
            raise UserError(f"recipe.distillation: an image of the data cannot be decoded in full ({error})") from None

    def _encode_texts(self, texts: list[bytes]) -> Tensor:
        tokens = self.encoder.tokenizer([text.decode() for text in texts])
        return self.encoder.model.encode_text(tokens.to(self.device))


def _directory(reference: str) -> Path:
    if reference.startswith(TRANSFORMERS_PREFIX):
        return resolve_model_dir(reference.removeprefix(TRANSFORMERS_PREFIX), _FIELD)
    return resolve_encoder_dir(reference, _FIELD)


def teacher_parameters(reference: str) -> int:
    """Return the number of parameters in a teacher's weights. Raises UserError if there is no such directory."""
    from safetensors import safe_open

    directory, count = _directory(reference), 0
    if (path := find_open_clip_weights(directory)).suffix != ".safetensors":
        return sum(value.numel() for value in read_weights(path).values())
    for path in directory.glob("*model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count
