"""Zero-shot retrieval while training goes on: web, partial and whole synthetic captions against held-out pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clips.data.augment import augment
from clips.data.config import AugmentConfig
from clips.data.images import BadImageError, decode_image
from clips.data.sources import BadSampleError, Sample, open_source
from clips.errors import UserError
from clips.method import recipes
from clips.method.model import ClipsModel
from clips.method.recipes import Captions, RecipeConfig, partial
from clips.model import towers
from clips.training.config import ValidationConfig
from clips.training.step import Run, to_device

_SENTENCE = recipes.build(RecipeConfig(name="clips"))
_UNCHANGED = AugmentConfig(min_area=1.0, colour_jitter=0.0, greyscale=0.0, flip=False)


class Validation:
    """Held-out pictures with their captions, read once, encoded as often as is asked for.

    Args:
        config: with a source.
        run: the training run. Partial captions are one sentence whatever its recipe, so that recipes compare.

    Raises:
        UserError: the source is broken, or has no usable sample.
    """

    def __init__(self, config: ValidationConfig, run: Run) -> None:
        assert config.source is not None
        self.config, self.run = config, run
        source = open_source(config.source)
        chosen = np.linspace(0, len(source) - 1, min(config.samples, len(source))).round().astype(int)
        pictures: list[Tensor] = []
        self.texts: dict[str, list[str]] = {"web": [], "partial": [], "whole": []}
        for index in chosen.tolist():
            rng = np.random.default_rng([index])
            try:
                sample = source.read(index, rng)
                if not sample.web:
                    continue  # it would be asked for by an empty text
                picture = augment(decode_image(sample.image), run.encoder.image_size, _UNCHANGED, rng)
            except (BadSampleError, BadImageError):
                continue
            pictures.append(picture)
            self._add_texts(sample, rng)
        if not pictures:
            raise UserError(f"validation.source: {config.source.path}: none of {len(chosen)} samples can be used")
        self.pictures = torch.stack(pictures)

    def _add_texts(self, sample: Sample, rng: np.random.Generator) -> None:
        captions = Captions(sample.web, sample.synthetic)
        self.texts["web"].append(captions.web)
        self.texts["partial"].append(partial(captions, rng, _SENTENCE))
        self.texts["whole"].append(captions.synthetic or captions.web)

    @torch.no_grad()
    def measure(self, encoder: ClipsModel, moved: Callable[[], None] = lambda: None) -> dict[str, float]:
        """R@1 of each kind of caption in both directions, 0 to 1, by name: ``val_web_t2i_r1`` …

        Args:
            encoder: whole, on the run's device.
            moved: called now and then, as a sign of life.
        """
        learns, _ = encoder.training, encoder.eval()
        try:
            images = self._encode_images(encoder)
            found = {}
            for kind, texts in self.texts.items():
                moved()
                cosines = images @ self._encode_texts(encoder, texts).t()
                found[f"val_{kind}_i2t_r1"] = recall_at_1(cosines)
                found[f"val_{kind}_t2i_r1"] = recall_at_1(cosines.t())
            return found
        finally:
            encoder.train(learns)

    def _encode_images(self, encoder: ClipsModel) -> Tensor:
        features = []
        for pictures in self.pictures.split(self.config.batch_size):
            pixels = to_device({"image": pictures}, self.run)["image"]
            with self._autocast():
                features.append(towers.encode_image(encoder.clip, pixels)[0])
        return F.normalize(torch.cat(features).float(), dim=-1)

    def _encode_texts(self, encoder: ClipsModel, texts: list[str]) -> Tensor:
        tokens = self.run.encoder.tokenizer(texts).to(self.run.processes.device)
        with self._autocast():
            parts = tokens.split(self.config.batch_size)
            features = [towers.text_features(encoder.clip, part) for part in parts]
        return F.normalize(torch.cat(features).float(), dim=-1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.run.processes.device.type, torch.bfloat16, enabled=self.run.precision == "bf16")


def recall_at_1(cosines: Tensor) -> float:
    """Share of rows whose own column is their nearest; one of several equally near counts as its part of a hit."""
    own = cosines.diagonal()[:, None]
    nearer, as_near = (cosines > own).sum(dim=1), (cosines == own).sum(dim=1)
    return float(((nearer == 0) / as_near).mean())
