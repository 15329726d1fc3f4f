"""One training step without its numbers: what it computes, and what it holds in memory while it does.

The model's own code runs on torch's fake tensors, which have shapes and types but no content: a step of the largest
model takes seconds and no memory. Tokens are real, so that code may look at them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # noqa: N812

from clips.method.model import ClipsModel, build_model
from clips.method.recipes import RecipeConfig
from clips.model import losses
from clips.model.architectures import ModelConfig, model_cfg
from clips.model.precision import quick_attention
from clips.model.tokenizer import EOS
from clips.model.towers import end_token
from clips.planning.instruments import FlopCount, MemoryTrace
from clips.training import validate
from clips.training.config import ValidationConfig

Device = Literal["cpu", "cuda"]
SIGN = 23
"""A prime that divides the widths, places and words of no usual model, so that it tells what grows with the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What a step over ``samples`` samples computes and holds, the contrastive loss left out.

    Args:
        samples: in it.
        forward_flops: of the forward pass, all samples together; a multiplication with an addition is two.
        flops: of forward and backward pass, nothing computed twice.
        inputs: bytes of the batch.
        timeline: (instants, 3) bytes at every allocation: gradients of parameters, low-precision copies of parameters,
            and everything else that the step made (activations, their gradients, work space).
        growth: (instants,) bytes of everything else that a further sample would add; told of multiples of ``SIGN``.
        turn: the instant at which the forward pass was over.
    """

    samples: int
    forward_flops: float
    flops: float
    inputs: int
    timeline: np.ndarray
    growth: np.ndarray
    turn: int

    @property
    def flops_of_sample(self) -> float:
        """A sample's share of ``flops``."""
        return self.flops / self.samples

    def timeline_of(self, samples: int) -> np.ndarray:
        """The timeline of as many ``samples`` as would be."""
        timeline = self.timeline.astype(np.float64)
        timeline[:, 2] += (samples - self.samples) * self.growth
        return timeline


def fake_model(model: ModelConfig, recipe: RecipeConfig) -> ClipsModel:
    """The model of a config, its parameters without content. What it begins with is not read."""
    fresh = dataclasses.replace(model, pretrained=None, pretrained_trunk=None)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if "timm_model_name" in model_cfg(fresh)["vision_cfg"]:  # timm's constructors do not bear fake tensors
        with torch.device("meta"):
            built = build_model(fresh, recipe, seed=0)
        with mode:
            _empty(built)
        return built
    with mode:
        return build_model(fresh, recipe, seed=0)


def _empty(model: nn.Module) -> None:
    """Take the content out of parameters and buffers; a fake tensor mode must be on."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(value.shape), requires_grad=value.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


@contextlib.contextmanager
def checkpointed(model: ClipsModel) -> Iterator[None]:
    """Keep only the inputs of the layers, and compute what they hold again in the backward pass."""
    model.checkpoint_activations()
    try:
        yield
    finally:
        model.checkpoint_activations(enable=False)


def fake_batch(
    model: ClipsModel, samples: int, caption_tokens: int | None = None, texts: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A batch as `clips.training.step.to_device` hands it on: texts without padding, pictures without content.

    Args:
        model: whose batch.
        samples: how many.
        caption_tokens: counted labels of a sample's caption, all that the captioner has places for if not given.
        texts: the token tensors of a real batch, which take the place of those without padding.
    """
    size = model.image_size
    with _mode_of(model):
        image = torch.empty(samples, 3, size, size).contiguous(memory_format=torch.channels_last)
    batch = {name: full_texts(model, samples) for name in model.recipe.encoded}
    if model.captioner is not None:
        length = model.captioner.config.length
        counted = torch.arange(length).expand(samples, -1) < counted_labels(model, caption_tokens)
        batch |= {"target": torch.full((samples, length), EOS), "target_mask": counted}
    return {"image": image, **batch, **(texts or {})}


def full_texts(model: ClipsModel, samples: int) -> Tensor:
    """Rows (samples, context length) of texts that fill them."""
    rows = torch.full((samples, model.context_length), EOS + 1)
    if (end := end_token(model.clip)) is not None:
        rows[:, -1] = end
    return rows


def counted_labels(model: ClipsModel, caption_tokens: int | None = None) -> int:
    """Labels of a sample that enter the caption loss."""
    assert model.captioner is not None
    config = model.recipe.config.captioner
    most = model.captioner.config.length - 1  # the begin token is nobody's label
    return min(most, *(value for value in (caption_tokens, config.positions) if value is not None), most)


def dry_step(
    model: ClipsModel,
    samples: int,
    *,
    device: Device = "cuda",
    bf16: bool = True,
    checkpointing: bool = False,
    caption_tokens: int | None = None,
    texts: Mapping[str, Tensor] | None = None,
) -> Step:
    """Forward and backward pass over a batch of ``samples``, as on ``device``.

    Args:
        model: of `fake_model`.
        samples: in the batch.
        device: whose attention kernels and types are taken: the fused kernels and types of autocast on a GPU differ
            from a CPU's.
        bf16: activations in bfloat16 by autocast.
        checkpointing: keep the inputs of layers only, and compute the rest again in the backward pass.
        caption_tokens: see `fake_batch`; ``texts`` likewise.
    """
    batch = fake_batch(model, samples, caption_tokens, texts)
    model.train()
    model.zero_grad()
    live = MemoryTrace(model, sign=math.gcd(samples, SIGN))
    kernels = _cuda_kernels() if device == "cuda" else contextlib.nullcontext()
    layers_again = checkpointed(model) if checkpointing else contextlib.nullcontext()
    attention = quick_attention(torch.device(device), "bf16" if bf16 else "fp32")
    with _young_garbage(), layers_again, kernels, attention, live, FlopCount() as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(batch)
        turn, forward = len(live.timeline), counter.total
        loss = torch.stack([value.float().sum() for value in outputs.values() if value.requires_grad]).sum()
        del outputs
        loss.backward()
    return Step(
        samples=samples,
        forward_flops=forward,
        flops=counter.total,
        inputs=sum(value.nbytes for value in batch.values()),
        timeline=np.asarray(live.timeline, dtype=np.int64),
        growth=np.asarray(live.growing, dtype=np.float64) / samples,
        turn=turn,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """What the contrastive loss costs a process: ``flops`` and ``peak`` bytes, its and its gradient's together."""

    flops: float
    peak: int


def dry_contrast(model: ClipsModel, samples: int, processes: int) -> Contrast:
    """The contrastive loss of ``samples`` samples with those of all ``processes``, forward and backward.

    Args:
        model: of `fake_model`.
        samples: of each process.
        processes: how many.
    """
    recipe, width = model.recipe, int(model.model_cfg["embed_dim"])
    with _mode_of(model):
        image, *texts = (torch.empty(samples, width).requires_grad_() for _ in range(1 + len(recipe.spec.texts)))
        scale, bias = (torch.empty(()).requires_grad_() for _ in range(2))
    with _many(processes), MemoryTrace(model) as live, FlopCount() as counter:
        losses.contrastive_loss(image, texts, scale, bias, kind=recipe.config.loss).backward()
    return Contrast(flops=counter.total, peak=max(map(sum, live.timeline)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryValidation:
    """Bytes that validation makes in a process.

    Args:
        features: of all samples, pictures and captions; there throughout.
        encoding: of the fullest instant in which a batch is encoded.
        similarities: of the fullest instant in which a batch is ranked among all samples.
    """

    features: int
    encoding: int
    similarities: int

    @property
    def peak(self) -> int:
        """Of the fullest instant."""
        return self.features + max(self.encoding, self.similarities)


def dry_validation(
    model: ClipsModel, config: ValidationConfig, *, device: Device = "cuda", bf16: bool
) -> DryValidation:
    """What `clips.training.validate.Validation` holds, whatever the number of processes.

    Args:
        model: of `fake_model`.
        config: whose samples are taken to be there.
        device: see `dry_step`.
        bf16: see `dry_step`.
    """
    samples, size = min(config.samples, config.batch_size), model.image_size
    model.eval()
    kernels = _cuda_kernels() if device == "cuda" else contextlib.nullcontext()
    tokens = dict.fromkeys(validate.CAPTIONS, full_texts(model, samples))
    with torch.no_grad(), kernels:
        with MemoryTrace(model) as encoding:
            with _mode_of(model):
                mean = torch.empty(3, 1, 1)
                pixels = validate.normalized(torch.empty(samples, 3, size, size, dtype=torch.uint8), mean, mean)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                found = validate.encode(model, pixels, tokens)
            del pixels, found
        with _mode_of(model), MemoryTrace(model) as keeping:
            features = validate.empty_features(model, config.samples, torch.device("cpu"))
        with _mode_of(model), MemoryTrace(model) as ranking:
            query, own = features["web"][:samples], torch.zeros(samples, dtype=torch.long)
            validate.hits(query.clone(), features[validate.IMAGE], own)
    kept, encoded, ranked = (max(map(sum, trace.timeline)) for trace in (keeping, encoding, ranking))
    return DryValidation(features=kept, encoding=encoded, similarities=ranked)


def contrast_flops(model: ClipsModel, samples: int, processes: int) -> float:
    """The FLOPs of `dry_contrast` by hand: logits and two gradients, for each text and direction."""
    directions = 1 if model.recipe.config.loss == "sigmoid" else 2
    pairs = samples * samples * processes * len(model.recipe.spec.texts) * directions
    return 3.0 * 2 * int(model.model_cfg["embed_dim"]) * pairs


@contextlib.contextmanager
def _many(processes: int) -> Iterator[None]:
    """`clips.model.losses` as if there were so many processes, which send nothing."""
    before = losses.process_count, losses.process_rank, losses.dist
    silent: Any = types.SimpleNamespace(all_gather_into_tensor=_nothing, all_reduce=_nothing)
    losses.process_count, losses.process_rank, losses.dist = (lambda: processes), (lambda: 0), silent
    try:
        yield
    finally:
        losses.process_count, losses.process_rank, losses.dist = before


def _nothing(*arguments: Any, **named: Any) -> None:
    pass


@contextlib.contextmanager
def _young_garbage() -> Iterator[None]:
    """What is there already is not looked at when garbage is collected, which so takes no time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _cuda_kernels() -> Iterator[None]:
    """On a CPU's tensors, the attention and the types that a GPU would have.

    A GPU has fused attention under any mask, which keeps queries, keys, values, result and one number a row; and its
    autocast computes layer norms in float32, a CPU's in bfloat16 (the lists in torch's autocast_mode.h). Functions are
    replaced, since a mode of torch's is not in force where checkpoints are computed again.
    """
    before = F.scaled_dot_product_attention, F.layer_norm
    F.scaled_dot_product_attention, F.layer_norm = _fused_attention, _float32_norm  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.layer_norm = before


_layer_norm = F.layer_norm


def _float32_norm(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return _layer_norm(x, *arguments, **named)
    with torch.autocast("cpu", enabled=False):
        return _layer_norm(x.float(), *arguments, **named)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The operator of F.scaled_dot_product_attention that holds on a CPU what fused attention holds on a GPU."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    if attn_mask is not None and attn_mask.dtype is not query.dtype:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype).masked_fill(attn_mask.logical_not(), -torch.inf)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _mode_of(model: nn.Module) -> FakeTensorMode:
    return next(model.parameters()).fake_mode  # type: ignore[attr-defined]
