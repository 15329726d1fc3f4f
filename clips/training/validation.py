"""Zero-shot retrieval during training: web, partial and full synthetic captions of held-out images.

The processes share the work batch by batch. The batches, and so the metrics, are the same for any number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clips.data.images import InvalidImageError, InvalidSampleError, decode_image
from clips.data.sources import Source, open_source
from clips.errors import UserError
from clips.method.clips_model import ClipsModel
from clips.method.recipes import CaptionPair, Recipe, RecipeConfig, partial_text
from clips.model import towers
from clips.parallel.distributed import all_or_none
from clips.training.setup import TrainRun
from clips.training.train_config import ValidationConfig

IMAGE, CAPTIONS = "image", ("web", "partial", "whole")
_CLIPS_RECIPE = Recipe(RecipeConfig(name="clips"))
_ROUNDING = 1e-6  # of a cosine in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A batch of n valid samples."""

    indices: Tensor  # (n,), of the samples among the selected ones
    images: Tensor  # (n, 3, size, size) uint8
    texts: dict[str, list[str]]  # type of caption → n captions


class RetrievalValidation:
    """Held-out images with their captions: each process reads its batches once and encodes them in each validation.

    A collective call.

    Args:
        config: with a source.
        run: the training run. Partial captions are one sentence for any recipe, so that recipes compare.

    Raises:
        UserError: on all processes: the source cannot be read, or has no valid sample.
    """

    def __init__(self, config: ValidationConfig, run: TrainRun) -> None:
        assert config.source is not None
        self.config, self.run = config, run
        source = all_or_none(lambda: open_source(config.source))  # type: ignore[arg-type]
        selected = np.linspace(0, len(source) - 1, min(config.num_samples, len(source))).round().astype(int)
        self.batches = all_or_none(lambda: list(self._read(source, selected)))
        valid = torch.zeros(len(selected), device=run.processes.device)
        for batch in self.batches:
            valid[batch.indices] = 1
        self.valid = _all_reduce(valid).bool()
        if not self.valid.any():
            raise UserError(f"validation.source: {config.source.path}: none of {len(selected)} samples can be used")

    def _read(self, source: Source, selected: np.ndarray) -> Iterator[HeldOut]:
        from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

        # The exported encoder's own preprocessing; the run normalizes the pixels.
        own = self.run.encoder.preprocess_cfg | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        resize = image_transform_v2(PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), own)), is_train=False)
        starts = range(0, len(selected), self.config.batch_size)
        for start in starts[self.run.processes.rank :: self.run.processes.count]:
            indices, images = list[int](), list[Tensor]()
            texts: dict[str, list[str]] = {kind: [] for kind in CAPTIONS}
            for index, source_index in enumerate(selected[start : start + self.config.batch_size].tolist(), start):
                rng = np.random.default_rng([source_index])
                try:
                    sample = source.read(source_index, rng)
                    if not sample.web:
                        continue  # an empty text is no query
                    image = (resize(decode_image(sample.image)) * 255).round().byte()
                except (InvalidSampleError, InvalidImageError):
                    continue
                indices.append(index)
                images.append(image)
                captions = CaptionPair(sample.web, sample.synthetic)
                texts["web"].append(captions.web)
                texts["partial"].append(partial_text(captions, rng, _CLIPS_RECIPE))
                texts["whole"].append(captions.synthetic or captions.web)
            if indices:
                device, pixels = self.run.processes.device, torch.stack(images)
                yield HeldOut(indices=torch.tensor(indices, device=device), images=pixels, texts=texts)

    @torch.no_grad()
    def measure(self, encoder: ClipsModel) -> dict[str, float]:
        """Return R@1 of each type of caption in both directions, 0 to 1, by name: ``val_web_t2i_r1`` …

        A collective call.

        Args:
            encoder: unsharded, on the run's device, the same on all processes.
        """
        was_training, _ = encoder.training, encoder.eval()
        try:
            width, device = int(encoder.model_cfg["embed_dim"]), self.run.processes.device
            features = {kind: torch.zeros(len(self.valid), width, device=device) for kind in (IMAGE, *CAPTIONS)}
            for batch in self.batches:
                tokens = {kind: self.run.encoder.tokenizer(texts) for kind, texts in batch.texts.items()}
                pixels = self.run.normalize(batch.images.to(device))
                with torch.autocast(device.type, torch.bfloat16, enabled=self.run.precision == "bf16"):
                    encoded = encode(encoder, pixels, tokens)
                for kind, value in encoded.items():
                    features[kind][batch.indices] = F.normalize(value.float(), dim=-1)
        finally:
            encoder.train(was_training)
        valid = {kind: _all_reduce(value)[self.valid] for kind, value in features.items()}
        row_of = self.valid.cumsum(0) - 1
        recalls = {}
        for kind in CAPTIONS:
            for direction, query, candidates in (
                ("i2t", valid[IMAGE], valid[kind]),
                ("t2i", valid[kind], valid[IMAGE]),
            ):
                correct = torch.zeros(len(query), device=query.device)
                for batch in self.batches:  # each process ranks its own samples
                    rows = row_of[batch.indices]
                    correct[rows] = hits(query[rows], candidates, rows)
                recalls[f"val_{kind}_{direction}_r1"] = float(_all_reduce(correct).double().mean())
        return recalls


def encode(encoder: ClipsModel, pixels: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the features of a batch: of its ``pixels`` and of the ``tokens`` of each type of caption."""
    texts = {kind: towers.encode_text_features(encoder.clip, rows) for kind, rows in tokens.items()}
    return {IMAGE: towers.encode_image(encoder.clip, pixels)[0], **texts}


def hits(query: Tensor, candidates: Tensor, own: Tensor) -> Tensor:
    """Return whether the most similar candidate of each query is its own, (n,); 1 / k if k candidates tie.

    Cosines that differ by less than rounding tie: the cosine of equal features depends on their memory layout.

    Args:
        query: features, (n, width).
        candidates: features, (N, width).
        own: the row of each query's own candidate, (n,).
    """
    cosines = query @ candidates.t()
    target = cosines.gather(1, own[:, None])
    closer, at_least_as_close = (cosines > target + _ROUNDING).sum(dim=1), (cosines >= target - _ROUNDING).sum(dim=1)
    return (closer == 0) / at_least_as_close


def _all_reduce(value: Tensor) -> Tensor:  # of which each process has filled other rows
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value
