"""Profile FLOPs and memory of a training step on torch's fake tensors, without computing it.

Fake tensors have shapes and dtypes but no data: a step of the largest model takes seconds and no memory. Tokens are
real, because code inspects them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # noqa: N812

from clips.data.images import normalize
from clips.method.clips_model import ClipsModel, build_model
from clips.method.objectives import contrastive_loss
from clips.method.recipes import RecipeConfig
from clips.model import losses
from clips.model.architectures import CONTRASTIVE_LOSSES, ModelConfig, model_cfg
from clips.model.layers import checkpoint_layers
from clips.model.precision import fast_sdpa_backend
from clips.model.tokenizer import EOS
from clips.model.towers import eot_token_id
from clips.planning.profilers import FlopCounter, MemoryTrace, replaced
from clips.training import validation
from clips.training.train_config import ValidationConfig

Device = Literal["cpu", "cuda"]
BATCH_DIVISOR = 23
"""A prime that does not divide usual widths, lengths and vocabulary sizes: bytes it divides grow with the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepProfile:
    """FLOPs and memory of a step over ``samples`` samples, without the contrastive loss.

    Args:
        samples: number of samples in the step.
        feature_flops: of the forward pass without the captioner, which is the first pass over micro-batches; a
            multiplication with an addition counts as two.
        flops: of forward and backward pass, without recomputation.
        inputs: bytes of the batch.
        timeline: (instants, 3) bytes at every allocation: gradients of parameters, low-precision copies of parameters,
            and other tensors (activations, their gradients, temporary ones).
        growth: (instants,) bytes of other tensors per additional sample; for multiples of ``BATCH_DIVISOR``.
        forward_end: the instant at the end of the forward pass.
    """

    samples: int
    feature_flops: float
    flops: float
    inputs: int
    timeline: np.ndarray
    growth: np.ndarray
    forward_end: int

    @property
    def flops_per_sample(self) -> float:
        """``flops`` over ``samples``."""
        return self.flops / self.samples

    def scaled_timeline(self, samples: int) -> np.ndarray:
        """Return the timeline scaled to ``samples`` samples."""
        timeline = self.timeline.astype(np.float64)
        timeline[:, 2] += (samples - self.samples) * self.growth
        return timeline


@functools.lru_cache(maxsize=4)
def fake_model(model: ModelConfig, recipe: RecipeConfig) -> ClipsModel:
    """Build the model of a config with fake parameters; pretrained weights are not read, outputs are not cached."""
    config = dataclasses.replace(model.without_initial_weights(), cache_trunk_features=False, cache_text_features=False)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    cfg = model_cfg(config)
    libraries = "timm_model_name" in cfg["vision_cfg"] or "hf_model_name" in cfg["text_cfg"]
    if not libraries:
        with mode:
            return build_model(config, recipe, seed=0)
    with torch.device("meta"):  # constructors of timm and transformers fail with fake tensors
        built = build_model(config, recipe, seed=0)
    with mode:
        replace_by_empty(built)
    return built


def replace_by_empty(model: nn.Module) -> None:
    """Replace parameters and buffers by empty ones, which are fake in a fake tensor mode."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            fake = torch.empty(value.shape, dtype=value.dtype)
            setattr(module, name, nn.Parameter(fake, requires_grad=value.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def fake_batch(
    model: ClipsModel, samples: int, caption_tokens: int | None = None, texts: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return a batch as `clips.training.train_step.prepare_batch` does: fake images, and texts without padding.

    Args:
        model: of `fake_model`.
        samples: number of samples in the batch.
        caption_tokens: tokens of a sample's caption that enter the loss; None is the captioner's maximum.
        texts: the token tensors of a real batch, which replace those without padding.
    """
    size = model.image_size
    with _mode_of(model):
        image = torch.empty(samples, 3, size, size).contiguous(memory_format=torch.channels_last)
    batch = {name: full_length_texts(model, samples) for name in model.recipe.encoded}
    if model.captioner is not None:
        length, limit = model.captioner.config.length, model.recipe.config.captioner.max_loss_tokens
        # The begin token is no label.
        labels = min([length - 1, *(value for value in (caption_tokens, limit) if value is not None)])
        mask = torch.arange(length).expand(samples, -1) < labels
        batch |= {"target": torch.full((samples, length), EOS), "target_mask": mask}
        if model.recipe.visual_token_ratio < 1:
            batch["visual_seed"] = torch.arange(samples)
    return {"image": image, **batch, **(texts or {})}


def full_length_texts(model: ClipsModel, samples: int) -> Tensor:
    """Return token sequences (samples, context length) without padding."""
    tokens = torch.full((samples, model.context_length), EOS + 1)
    if (end := eot_token_id(model.clip)) is not None:
        tokens[:, -1] = end
    return tokens


def profile_step(
    model: ClipsModel,
    samples: int,
    *,
    device: Device = "cuda",
    bf16: bool = True,
    checkpointing: int = 0,
    caption_tokens: int | None = None,
    texts: Mapping[str, Tensor] | None = None,
    memory: bool = True,
) -> StepProfile:
    """Profile forward and backward pass over a batch of ``samples``, as on ``device``.

    Args:
        model: of `fake_model`.
        samples: number of samples in the batch.
        device: determines attention kernels and autocast dtypes.
        bf16: activations in bfloat16 by autocast.
        checkpointing: interval of the layers whose activations are recomputed; 0 for none.
        caption_tokens: see `fake_batch`; ``texts`` likewise.
        memory: whether to trace it; otherwise only FLOPs are counted, in half the time.
    """
    batch = fake_batch(model, samples, caption_tokens, texts)
    trace, counter = MemoryTrace(model, divisor=math.gcd(samples, BATCH_DIVISOR)), FlopCounter()
    marks: list[tuple[int, float]] = []  # at the start and end of the captioner, and at the end of the forward pass

    def mark(*_: Any) -> None:
        marks.append((len(trace.timeline), counter.total))

    captioner = model.captioner or nn.Identity()
    hooks = captioner.register_forward_pre_hook(mark), captioner.register_forward_hook(mark)
    with trace if memory else contextlib.nullcontext(), counter, hooks[0], hooks[1]:
        run_fake_step(model, batch, mark, device=device, bf16=bf16, checkpointing=checkpointing)
    forward_end, features = marks[-1][0], marks[0][1]
    return StepProfile(
        samples=samples,
        feature_flops=features,
        flops=counter.total,
        inputs=sum(value.nbytes for value in batch.values()),
        timeline=np.asarray(trace.timeline, dtype=np.int64),
        growth=np.asarray(trace.growth, dtype=np.float64) / samples,
        forward_end=forward_end,
    )


def run_fake_step(
    model: ClipsModel,
    batch: Mapping[str, Tensor],
    end_forward: Callable[[], None],
    *,
    device: Device,
    bf16: bool,
    checkpointing: int,
) -> None:
    """Run forward and backward pass of `fake_model` over a fake batch, and call ``end_forward`` in between."""
    model.train()
    model.zero_grad()
    checkpoint_layers(model, checkpointing)
    attention = fast_sdpa_backend(torch.device(device), "bf16" if bf16 else "fp32")
    with frozen_garbage(), kernels_of(device), attention:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(batch)
        end_forward()
        loss = torch.stack([value.float().sum() for value in outputs.values() if value.requires_grad]).sum()
        del outputs
        with _mode_of(model):  # entered once, not for each operator
            loss.backward()
    checkpoint_layers(model, 0)


def profile_contrastive_loss(
    model: ClipsModel, samples: int, processes: int, *, device: Device = "cuda"
) -> tuple[float, int]:
    """Return FLOPs and peak bytes of the contrastive loss and its gradient for one process.

    Args:
        model: of `fake_model`.
        samples: of each process.
        processes: number of processes of the global batch.
        device: see `profile_step`.
    """
    recipe, width = model.recipe, int(model.model_cfg["embed_dim"])
    if not recipe.texts:
        return 0.0, 0
    with _mode_of(model):
        outputs = {name: torch.empty(samples, width).requires_grad_() for name in ("image", *recipe.encoded)}
        outputs |= {name: torch.empty(()).requires_grad_() for name in ("logit_scale", "logit_bias")}
    with _fake_processes(processes), kernels_of(device), MemoryTrace(model) as trace, FlopCounter() as counter:
        contrastive_loss(recipe, outputs).backward()
    return counter.total, trace.peak


def contrastive_flops(model: ClipsModel, samples: int, processes: int) -> float:
    """Compute the FLOPs of `profile_contrastive_loss`: logits and two gradients, for each text and direction."""
    recipe = model.recipe
    to_images = 0 if CONTRASTIVE_LOSSES[recipe.spec.loss] else 1
    pairs = samples * samples * processes * len(recipe.texts)
    return 2 * pairs * 3.0 * (1 + to_images) * int(model.model_cfg["embed_dim"])


def profile_validation(
    model: ClipsModel, config: ValidationConfig, *, device: Device = "cuda", bf16: bool
) -> dict[str, float]:
    """Return bytes of `clips.training.validation.RetrievalValidation`: features of all samples, and peak of a batch.

    Args:
        model: of `fake_model`.
        config: of the validation.
        device: see `profile_step`; ``bf16`` likewise.
    """
    samples, size = min(config.num_samples, config.batch_size), model.image_size
    model.eval()
    tokens = dict.fromkeys(validation.CAPTIONS, full_length_texts(model, samples))
    with torch.no_grad(), kernels_of(device):
        with MemoryTrace(model) as encoding:
            with _mode_of(model):
                mean = torch.empty(3, 1, 1)
                pixels = normalize(torch.empty(samples, 3, size, size, dtype=torch.uint8), mean, mean)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                encoded = validation.encode(model, pixels, tokens)
            del pixels, encoded
        with _mode_of(model), MemoryTrace(model) as storing:
            features = validation.empty_features(model, config.num_samples, torch.device("cpu"))
        with _mode_of(model), MemoryTrace(model) as ranking:
            query, own = features["web"][:samples], torch.zeros(samples, dtype=torch.long)
            validation.hits(query.clone(), features[validation.IMAGE], own)
    return {"features": float(storing.peak), "similarities and activations": float(max(encoding.peak, ranking.peak))}


@contextlib.contextmanager
def _fake_processes(count: int) -> Iterator[None]:
    """Simulate ``count`` processes in `clips.model.losses`, without communication."""
    no_communication = types.SimpleNamespace(all_gather_into_tensor=_no_op, reduce_scatter_tensor=_no_op)
    with (
        replaced(losses, "world_size", lambda: count),
        replaced(losses, "rank", lambda: 0),
        replaced(losses, "dist", no_communication),
    ):
        yield


def _no_op(*arguments: Any, **named: Any) -> None:
    pass


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """Exclude existing objects from garbage collection, which saves time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def kernels_of(device: Device) -> Iterator[None]:
    """Use the attention, the autocast dtypes and the loss's chunks of ``device`` for CPU tensors.

    A GPU has fused attention under any mask, which stores queries, keys, values, result and one number per row. Its
    autocast computes layer norms in float32, that of a CPU in bfloat16 (the lists in torch's autocast_mode.h).
    Functions are replaced, because torch's modes are inactive during the recomputation of checkpoints.
    """
    if device == "cpu":
        yield
        return
    with (
        replaced(F, "scaled_dot_product_attention", _fused_attention),
        replaced(F, "layer_norm", _float32_norm),
        replaced(losses, "chunk_rows", losses.gpu_chunk_rows),
    ):
        yield


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
    """Attention on a CPU that stores the same tensors as fused attention on a GPU."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    if attn_mask is not None and attn_mask.ndim == 2 and attn_mask.shape[0] < attn_mask.shape[1]:
        attn_mask, is_causal = None, True  # the captioner's, which a GPU computes without a dense mask
    if attn_mask is not None and attn_mask.dtype is not query.dtype:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype).masked_fill(attn_mask.logical_not(), -torch.inf)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _mode_of(model: nn.Module) -> FakeTensorMode:
    return next(model.parameters()).fake_mode  # type: ignore[attr-defined]
