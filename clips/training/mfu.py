"""FLOPs and memory of a training step, and the model FLOPs utilization (MFU) of a running training: PaLM, appendix B.

Both are counted on a copy of the model with fake tensors, which have shapes and no data: a step of the largest model
takes seconds and no memory. In the step itself torch's ``FlopCounterMode`` would count recomputed activations, and miss
what torch.compile fuses; torch's ``MemTracker`` wants modules that run once in a step, not once for each text.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import weakref
from collections.abc import Mapping
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from clips.errors import error_reason
from clips.gpus import find_gpu
from clips.method.clips_model import ClipsModel, build_model, compute_losses
from clips.method.recipes import CONTRASTIVE_LOSSES, RecipeConfig
from clips.model import losses
from clips.model.architectures import ModelConfig
from clips.model.compute import checkpoint_layers
from clips.model.feature_cache import compute_cached_layers
from clips.model.tokenizer import EOS
from clips.model.towers import eot_token_id
from clips.safe_text import log_info
from clips.training.train_config import EncoderTrainConfig

_MAX_COUNTED = 8  # batches, each of which takes seconds


class MfuMeter:
    """Counts a run's FLOPs per sample, and computes its FLOP/s as a ratio of its devices' peak, if known.

    ``counted`` has the FLOPs per sample of the batches counted so far, to which more are appended: a resume continues.
    """

    def __init__(
        self,
        config: EncoderTrainConfig,
        *,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        processes: int,
        counted: list[float],
    ) -> None:
        self.config, self.processes, self.counted = config, processes, counted
        gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self.peak = None if gpu is None else gpu.peak(precision)  # FLOP/s
        self._uncountable = False

    def read(self, batch: Mapping[str, Tensor], samples_per_second: float) -> dict[str, float]:
        """Return "flops_per_sample" and, with a known peak, "mfu" and "tflops" of one process.

        FLOPs depend on the lengths of captions: they are a mean over the first eight calls.

        Args:
            batch: one of this process.
            samples_per_second: of all processes.
        """
        if len(self.counted) < _MAX_COUNTED and not self._uncountable:
            try:
                self.counted.append(flops_per_sample(self.config, batch, self.processes))
            except Exception as error:  # torch's internals may differ; the training should not end
                log_info(f"FLOPs: cannot be counted ({error_reason(error)})")
                self._uncountable = True
        if self._uncountable:
            return {}
        flops = statistics.fmean(self.counted)
        if self.peak is None:
            return {"flops_per_sample": flops}
        rate = flops * samples_per_second / self.processes
        return {"flops_per_sample": flops, "mfu": rate / self.peak, "tflops": rate / 1e12}


def flops_per_sample(config: EncoderTrainConfig, batch: Mapping[str, Tensor], processes: int) -> float:
    """Count FLOPs of a sample's forward and backward pass, including its part of the global contrastive loss.

    Recomputation to save memory is not counted, nor are layers whose outputs are cached, which compute once for each
    image; products with padding count if the model computes them.
    """
    model, samples = fake_model(config.model, config.recipe), len(batch["image"])
    tensors = {name: value.cpu() for name, value in batch.items() if isinstance(value, Tensor) and name != "image"}
    tensors["image"] = fake_images(model, samples)
    # Attention by plain products: of a fused backward pass torch counts the recomputed scores, too.
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = model(tensors)
        with fake_mode(model):
            torch.stack([value.float().sum() for value in outputs.values() if value.requires_grad]).sum().backward()
    model.zero_grad()
    with FlopCounterMode(display=False) as cached, fake_mode(model), torch.no_grad():
        if config.model.cache_trunk_features:
            compute_cached_layers(model.clip.visual.trunk, tensors["image"])
    flops = counter.get_total_flops() - cached.get_total_flops()
    return flops / samples + contrastive_flops(model, samples * processes)


def contrastive_flops(model: ClipsModel, candidates: int) -> float:
    """Return FLOPs per sample of the contrastive loss: logits and two gradients, for each text and direction."""
    products = 3 if CONTRASTIVE_LOSSES[model.recipe.spec.loss] else 6
    return 2.0 * products * candidates * len(model.recipe.texts) * int(model.model_cfg["embed_dim"])


def _convolution_backward_flops(gradient: Any, x: Any, weight: Any, *settings: Any, **options: Any) -> int:
    num_gradients = sum(settings[-1][:2])  # of the input, of the weight
    return int(num_gradients * 2 * math.prod(weight) * gradient[0] * math.prod(gradient[2:]))


_FORMULAS = {  # FLOPs from shapes
    # torch counts only the out-of-place operator
    torch.ops.aten.addmm_: lambda total, left, right, **options: int(2 * left[0] * left[1] * right[1]),
    torch.ops.aten.convolution_backward: _convolution_backward_flops,  # torch's own formula ignores groups
}


@functools.lru_cache(maxsize=1)
def fake_model(config: ModelConfig, recipe: RecipeConfig) -> ClipsModel:
    """Build the model of a config with fake parameters; pretrained weights are not read, outputs are not cached."""
    config = dataclasses.replace(config.without_initial_weights(), cache_trunk_features=False)
    with torch.device("meta"):  # constructors of timm fail with fake tensors
        model = build_model(config, recipe, seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return model.to_empty(device="cpu")


def fake_mode(model: ClipsModel) -> FakeTensorMode:
    """Return the mode of `fake_model`."""
    return next(model.parameters()).fake_mode  # type: ignore[attr-defined]


def fake_images(model: ClipsModel, samples: int) -> Tensor:
    """Return fake images of the model's size, as `clips.train.prepare_batch` does."""
    with fake_mode(model):
        size = model.image_size
        return torch.empty(samples, 3, size, size).contiguous(memory_format=torch.channels_last)


def full_batch(model: ClipsModel, samples: int) -> dict[str, Tensor]:
    """Return a batch of fake images and texts without padding for `fake_model`."""
    batch = {"image": fake_images(model, samples)}
    batch |= {name: full_length_texts(model, samples) for name in model.recipe.encoded}
    if model.captioner is not None:
        length, limit = model.captioner.config.length, model.recipe.config.captioner.max_loss_tokens
        labels = min(length - 1, limit or length)  # the begin token is no label
        mask = torch.arange(length).expand(samples, -1) < labels
        batch |= {"target": torch.full((samples, length), EOS), "target_mask": mask}
        if model.recipe.visual_token_ratio < 1:
            batch["visual_seed"] = torch.arange(samples)
    return batch


def full_length_texts(model: ClipsModel, samples: int) -> Tensor:
    """Return token sequences (samples, context length) without padding."""
    tokens = torch.full((samples, model.context_length), EOS + 1)
    if (end := eot_token_id(model.clip)) is not None:
        tokens[:, -1] = end
    return tokens


# ---------------------------------------------------------------- memory


def peak_bytes(model: ClipsModel, samples: int, *, bf16: bool, checkpointing: bool) -> int:
    """Return the peak bytes of a GPU's step in addition to parameters and optimizer, with the gradients of all samples.

    Args:
        model: of `fake_model`.
        samples: of the step; the contrastive loss is that of one process.
        bf16: activations in bfloat16.
        checkpointing: whether layers recompute their activations.
    """
    model.train()
    model.zero_grad()
    checkpoint_layers(model, recompute=checkpointing)
    # The towers' layers call F.layer_norm, and no argument of theirs selects the kernel of another device.
    with (  # CPU tensors, because fake ones of a GPU have no backward pass on a machine without one
        mock.patch.object(F, "layer_norm", float32_norm),
        mock.patch.object(losses, "chunk_rows", losses.gpu_chunk_rows),
        PeakBytes([*model.parameters(), *model.buffers()]) as trace,
    ):
        batch = full_batch(model, samples)
        outputs = model(batch, bf16=bf16)
        with fake_mode(model):
            loss = compute_losses(model.recipe, outputs)["loss"]
            del outputs
            loss.backward()
    checkpoint_layers(model, recompute=False)
    model.zero_grad()
    return trace.peak


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are allocated within it, but for ``others``."""

    def __init__(self, others: list[Tensor]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._storages: Any = WeakIdKeyDictionary({value.untyped_storage(): True for value in others})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):  # views share a storage that is known
            if isinstance(value, Tensor) and (storage := value.untyped_storage()) not in self._storages:
                self._storages[storage] = True
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)


_layer_norm = F.layer_norm


def float32_norm(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """``F.layer_norm`` as under autocast of a GPU; that of a CPU computes in bfloat16."""
    if not torch.is_autocast_enabled("cpu"):
        return _layer_norm(x, *arguments, **named)
    with torch.autocast("cpu", enabled=False):
        return _layer_norm(x.float(), *arguments, **named)
