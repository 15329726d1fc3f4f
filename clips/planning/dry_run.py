"""One training step on torch's fake tensors: its FLOPs, and the bytes that it holds, without computing anything.

Fake tensors have shapes and types but no content: a step of the largest model takes seconds and no memory. Tokens are
real, so that code may look at them.
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

from clips.method.clips_model import ClipsModel, build_model
from clips.method.recipes import RecipeConfig
from clips.model import losses
from clips.model.architectures import ModelConfig, model_cfg
from clips.model.precision import fast_sdpa_backend
from clips.model.tokenizer import EOS
from clips.model.towers import eot_token_id
from clips.planning.profilers import FlopCounter, MemoryTrace
from clips.training import validation
from clips.training.train_config import ValidationConfig

Device = Literal["cpu", "cuda"]
BATCH_DIVISOR = 23
"""A prime that divides the widths, lengths and vocabularies of no usual model: bytes it divides grow with the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepProfile:
    """What a step over ``samples`` samples computes and holds, without the contrastive loss.

    Args:
        samples: in the step.
        forward_flops: of the forward pass over all samples; a multiplication with an addition counts as two.
        flops: of forward and backward pass, nothing computed twice.
        inputs: bytes of the batch.
        timeline: (instants, 3) bytes at every allocation: gradients of parameters, low-precision copies of parameters,
            and everything else that the step made (activations, their gradients, work space).
        growth: (instants,) bytes of everything else that a further sample adds; for multiples of ``BATCH_DIVISOR``.
        forward_end: the instant at which the forward pass was over.
    """

    samples: int
    forward_flops: float
    flops: float
    inputs: int
    timeline: np.ndarray
    growth: np.ndarray
    forward_end: int

    @property
    def flops_per_sample(self) -> float:
        """``flops`` over ``samples``."""
        return self.flops / self.samples

    def timeline_of(self, samples: int) -> np.ndarray:
        """The timeline scaled to ``samples`` samples."""
        timeline = self.timeline.astype(np.float64)
        timeline[:, 2] += (samples - self.samples) * self.growth
        return timeline


def fake_model(model: ModelConfig, recipe: RecipeConfig) -> ClipsModel:
    """The model of a config, its parameters without content; pretrained weights are not read."""
    fresh = dataclasses.replace(model, pretrained=None, pretrained_trunk=None)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if "timm_model_name" not in model_cfg(fresh)["vision_cfg"]:
        with mode:
            return build_model(fresh, recipe, seed=0)
    with torch.device("meta"):  # timm's constructors do not bear fake tensors
        built = build_model(fresh, recipe, seed=0)
    with mode:
        _from_meta(built)
    return built


def _from_meta(model: nn.Module) -> None:
    """Replace parameters and buffers by empty ones, which an active fake tensor mode makes fake."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(value.shape), requires_grad=value.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def fake_batch(
    model: ClipsModel, samples: int, caption_tokens: int | None = None, texts: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A batch as `clips.training.train_step.prepare_batch` returns it: texts without padding, images without content.

    Args:
        model: of `fake_model`.
        samples: in the batch.
        caption_tokens: tokens of a sample's caption that enter the loss; None takes the captioner's maximum.
        texts: the token tensors of a real batch, which replace those without padding.
    """
    size = model.image_size
    with _mode_of(model):
        image = torch.empty(samples, 3, size, size).contiguous(memory_format=torch.channels_last)
    batch = {name: full_length_texts(model, samples) for name in model.recipe.encoded}
    if model.captioner is not None:
        length, limit = model.captioner.config.length, model.recipe.config.captioner.max_loss_tokens
        # The begin token is no label.
        labels = min(length - 1, *(value for value in (caption_tokens, limit) if value is not None), length - 1)
        counted = torch.arange(length).expand(samples, -1) < labels
        batch |= {"target": torch.full((samples, length), EOS), "target_mask": counted}
    return {"image": image, **batch, **(texts or {})}


def full_length_texts(model: ClipsModel, samples: int) -> Tensor:
    """Token rows (samples, context length) without padding."""
    rows = torch.full((samples, model.context_length), EOS + 1)
    if (end := eot_token_id(model.clip)) is not None:
        rows[:, -1] = end
    return rows


def profile_step(
    model: ClipsModel,
    samples: int,
    *,
    device: Device = "cuda",
    bf16: bool = True,
    checkpointing: bool = False,
    caption_tokens: int | None = None,
    texts: Mapping[str, Tensor] | None = None,
) -> StepProfile:
    """Forward and backward pass over a batch of ``samples``, as on ``device``.

    Args:
        model: of `fake_model`.
        samples: in the batch.
        device: whose attention kernels and autocast types are taken.
        bf16: activations in bfloat16 by autocast.
        checkpointing: activation checkpointing.
        caption_tokens: see `fake_batch`; ``texts`` likewise.
    """
    batch = fake_batch(model, samples, caption_tokens, texts)
    model.train()
    model.zero_grad()
    model.checkpoint_activations(enable=checkpointing)
    trace = MemoryTrace(model, divisor=math.gcd(samples, BATCH_DIVISOR))
    attention = fast_sdpa_backend(torch.device(device), "bf16" if bf16 else "fp32")
    with _young_garbage(), _kernels_of(device), attention, trace, FlopCounter() as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(batch)
        forward_end, forward = len(trace.timeline), counter.total
        loss = torch.stack([value.float().sum() for value in outputs.values() if value.requires_grad]).sum()
        del outputs
        loss.backward()
    model.checkpoint_activations(enable=False)
    return StepProfile(
        samples=samples,
        forward_flops=forward,
        flops=counter.total,
        inputs=sum(value.nbytes for value in batch.values()),
        timeline=np.asarray(trace.timeline, dtype=np.int64),
        growth=np.asarray(trace.growing, dtype=np.float64) / samples,
        forward_end=forward_end,
    )


def profile_contrastive_loss(model: ClipsModel, samples: int, processes: int) -> tuple[float, int]:
    """FLOPs and peak bytes that the contrastive loss and its gradient cost one of ``processes`` processes.

    Args:
        model: of `fake_model`.
        samples: of each process.
        processes: that share the global batch.
    """
    recipe, width = model.recipe, int(model.model_cfg["embed_dim"])
    with _mode_of(model):
        image, *texts = (torch.empty(samples, width).requires_grad_() for _ in range(1 + len(recipe.spec.positives)))
        scale, bias = (torch.empty(()).requires_grad_() for _ in range(2))
    with _fake_processes(processes), MemoryTrace(model) as trace, FlopCounter() as counter:
        losses.contrastive_loss(image, texts, scale, bias, kind=recipe.config.loss).backward()
    return counter.total, trace.peak


def contrastive_flops(model: ClipsModel, samples: int, processes: int) -> float:
    """The FLOPs of `profile_contrastive_loss` by hand: logits and two gradients, for each text and direction."""
    directions = 1 if model.recipe.config.loss == "sigmoid" else 2
    pairs = samples * samples * processes * len(model.recipe.spec.positives) * directions
    return 3.0 * 2 * int(model.model_cfg["embed_dim"]) * pairs


def profile_validation(
    model: ClipsModel, config: ValidationConfig, *, device: Device = "cuda", bf16: bool
) -> dict[str, float]:
    """Bytes of `clips.training.validation.RetrievalValidation`: "features" of all samples, and what a batch adds at
    its peak.

    Args:
        model: of `fake_model`.
        config: of the validation.
        device: see `profile_step`.
        bf16: see `profile_step`.
    """
    samples, size = min(config.num_samples, config.batch_size), model.image_size
    model.eval()
    tokens = dict.fromkeys(validation.CAPTIONS, full_length_texts(model, samples))
    with torch.no_grad(), _kernels_of(device):
        with MemoryTrace(model) as encoding:
            with _mode_of(model):
                mean = torch.empty(3, 1, 1)
                pixels = validation.normalized(torch.empty(samples, 3, size, size, dtype=torch.uint8), mean, mean)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                encoded = validation.encode(model, pixels, tokens)
            del pixels, encoded
        with _mode_of(model), MemoryTrace(model) as keeping:
            features = validation.empty_features(model, config.num_samples, torch.device("cpu"))
        with _mode_of(model), MemoryTrace(model) as ranking:
            query, own = features["web"][:samples], torch.zeros(samples, dtype=torch.long)
            validation.hits(query.clone(), features[validation.IMAGE], own)
    return {
        "features": float(keeping.peak),
        "similarities and activations": float(max(encoding.peak, ranking.peak)),
    }


@contextlib.contextmanager
def _fake_processes(count: int) -> Iterator[None]:
    """`clips.model.losses` as if there were ``count`` processes, which send nothing."""
    before = losses.world_size, losses.rank, losses.dist
    silent: Any = types.SimpleNamespace(all_gather_into_tensor=_nothing, all_reduce=_nothing)
    losses.world_size, losses.rank, losses.dist = (lambda: count), (lambda: 0), silent
    try:
        yield
    finally:
        losses.world_size, losses.rank, losses.dist = before


def _nothing(*arguments: Any, **named: Any) -> None:
    pass


@contextlib.contextmanager
def _young_garbage() -> Iterator[None]:
    """Exclude existing objects from garbage collection, which then takes no time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _kernels_of(device: Device) -> Iterator[None]:
    """On CPU tensors, the attention and the autocast types of ``device``.

    A GPU has fused attention under any mask, which keeps queries, keys, values, result and one number a row; and its
    autocast computes layer norms in float32, a CPU's in bfloat16 (the lists in torch's autocast_mode.h). Functions are
    replaced, since a mode of torch's is not in force where checkpoints are recomputed.
    """
    before = F.scaled_dot_product_attention, F.layer_norm
    if device == "cuda":
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
