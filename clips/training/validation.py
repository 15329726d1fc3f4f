"""Zero-shot retrieval while training goes on: web, partial and whole synthetic captions against held-out pictures.

The processes share the work batch by batch. Batches and the blocks of similarities are the same whatever the number
of processes, and so are the metrics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clips.data.augment import augment
from clips.data.data_config import AugmentConfig
from clips.data.images import BadImageError, decode_image
from clips.data.sources import BadSampleError, Sample, Source, open_source
from clips.errors import UserError
from clips.method import recipes
from clips.method.clips_model import ClipsModel
from clips.method.recipes import CaptionPair, RecipeConfig, partial_text
from clips.model import towers
from clips.parallel.distributed import all_or_none
from clips.training.train_config import ValidationConfig
from clips.training.train_step import TrainRun

IMAGE, CAPTIONS = "image", ("web", "partial", "whole")
_SENTENCE = recipes.build_recipe(RecipeConfig(name="clips"))
_ROUNDING = 1e-6  # of a cosine in float32
_UNCHANGED = AugmentConfig(crop_scale_min=1.0, color_jitter=0.0, gray_scale_prob=0.0, horizontal_flip=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A batch of valid samples.

    Args:
        numbers: of each among the chosen samples, (n,).
        pictures: (n, 3, size, size) uint8.
        texts: kind of caption → n of them.
    """

    numbers: Tensor
    pictures: Tensor
    texts: dict[str, list[str]]


class RetrievalValidation:
    """Held-out pictures with their captions: each process reads its batches once, encodes them when asked for.

    All processes of a training make it together.

    Args:
        config: with a source.
        run: the training run. Partial captions are one sentence whatever its recipe, so that recipes compare.

    Raises:
        UserError: the source is broken, or has no usable sample; in all processes, whichever met it.
    """

    def __init__(self, config: ValidationConfig, run: TrainRun) -> None:
        assert config.source is not None
        self.config, self.run = config, run
        source = all_or_none(lambda: open_source(config.source))  # type: ignore[arg-type]
        chosen = np.linspace(0, len(source) - 1, min(config.num_samples, len(source))).round().astype(int)
        self.batches = all_or_none(lambda: list(self._read(source, chosen)))
        valid = torch.zeros(len(chosen), device=run.processes.device)
        for batch in self.batches:
            valid[batch.numbers] = 1
        self.valid = _over_processes(valid).bool()
        if not self.valid.any():
            raise UserError(f"validation.source: {config.source.path}: none of {len(chosen)} samples can be used")

    def _read(self, source: Source, chosen: np.ndarray) -> Iterator[HeldOut]:
        """This process's batches; invalid samples are left out and leave theirs smaller."""
        starts = range(0, len(chosen), self.config.batch_size)
        for start in starts[self.run.processes.rank :: self.run.processes.count]:
            numbers, pictures = list[int](), list[Tensor]()
            texts: dict[str, list[str]] = {kind: [] for kind in CAPTIONS}
            for number, index in enumerate(chosen[start : start + self.config.batch_size].tolist(), start):
                rng = np.random.default_rng([index])
                try:
                    sample = source.read(index, rng)
                    if not sample.web:
                        continue  # retrieval would ask for it by an empty text
                    picture = augment(decode_image(sample.image), self.run.encoder.image_size, _UNCHANGED, rng)
                except (BadSampleError, BadImageError):
                    continue
                numbers.append(number)
                pictures.append(picture)
                for kind, text in _captions(sample, rng).items():
                    texts[kind].append(text)
            if numbers:
                device = self.run.processes.device
                yield HeldOut(numbers=torch.tensor(numbers, device=device), pictures=torch.stack(pictures), texts=texts)

    @torch.no_grad()
    def measure(self, encoder: ClipsModel, moved: Callable[[], None] = lambda: None) -> dict[str, float]:
        """R@1 of each kind of caption in both directions, 0 to 1, by name: ``val_web_t2i_r1`` …

        All processes call it together.

        Args:
            encoder: whole, on the run's device, the same in all processes.
            moved: called now and then, as a sign of life.
        """
        learns, _ = encoder.training, encoder.eval()
        try:
            features = empty_features(encoder, len(self.valid), self.run.processes.device)
            for batch in self.batches:
                moved()
                for kind, found in self._encode(encoder, batch).items():
                    features[kind][batch.numbers] = found
            features = {kind: _over_processes(value) for kind, value in features.items()}
            moved()
            return self._recalls(features)
        finally:
            encoder.train(learns)

    def _encode(self, encoder: ClipsModel, batch: HeldOut) -> dict[str, Tensor]:
        device = self.run.processes.device
        tokens = {kind: self.run.encoder.tokenizer(texts).to(device) for kind, texts in batch.texts.items()}
        pixels = normalized(batch.pictures.to(device), self.run.mean, self.run.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.run.precision == "bf16"):
            found = encode(encoder, pixels, tokens)
        return {kind: F.normalize(value.float(), dim=-1) for kind, value in found.items()}

    def _recalls(self, features: Mapping[str, Tensor]) -> dict[str, float]:
        """R@1 from the features of all samples, of which each process ranks its own."""
        valid = {kind: value[self.valid] for kind, value in features.items()}
        row_of = self.valid.cumsum(0) - 1
        directions = {"i2t": lambda kind: (IMAGE, kind), "t2i": lambda kind: (kind, IMAGE)}
        found = {}
        for kind in CAPTIONS:
            for name, ends in directions.items():
                query, candidates = (valid[end] for end in ends(kind))
                ranked = torch.zeros(len(query), device=query.device)
                for batch in self.batches:
                    rows = row_of[batch.numbers]
                    ranked[rows] = hits(query[rows], candidates, rows)
                found[f"val_{kind}_{name}_r1"] = float(_over_processes(ranked).double().mean())
        return found


def _captions(sample: Sample, rng: np.random.Generator) -> dict[str, str]:
    captions = CaptionPair(sample.web, sample.synthetic)
    whole = captions.synthetic or captions.web
    return {"web": captions.web, "partial": partial_text(captions, rng, _SENTENCE), "whole": whole}


def empty_features(encoder: ClipsModel, count: int, device: torch.device) -> dict[str, Tensor]:
    """Where the features of ``count`` samples go: of pictures and of each kind of caption, (count, width) zeros."""
    width = int(encoder.model_cfg["embed_dim"])
    return {kind: torch.zeros(count, width, device=device) for kind in (IMAGE, *CAPTIONS)}


def normalized(pictures: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 pictures as the towers take them: see `clips.training.train_step.prepare_batch`."""
    pixels = pictures.contiguous(memory_format=torch.channels_last).float()
    return (pixels / 255 - mean) / std


def encode(encoder: ClipsModel, pixels: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The features of a batch: of its ``pixels`` and of the ``tokens`` of each kind of caption."""
    texts = {kind: towers.encode_text_features(encoder.clip, rows) for kind, rows in tokens.items()}
    return {IMAGE: towers.encode_image(encoder.clip, pixels)[0], **texts}


def hits(query: Tensor, candidates: Tensor, own: Tensor) -> Tensor:
    """Of each row of ``query``, (n, width), whether its own candidate is its nearest; a tie counts as its part of one.

    Cosines closer than rounding tie: that of equal features depends on where they lie in memory.

    Args:
        query: features, (n, width).
        candidates: features, (N, width).
        own: the row of each query's own candidate, (n,).
    """
    cosines = query @ candidates.t()
    nearest = cosines.gather(1, own[:, None])
    nearer, at_least_as_near = (cosines > nearest + _ROUNDING).sum(dim=1), (cosines >= nearest - _ROUNDING).sum(dim=1)
    return (nearer == 0) / at_least_as_near


def _over_processes(value: Tensor) -> Tensor:
    """``value``, of which each process has filled rows of its own and left zeros, filled by all."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value
