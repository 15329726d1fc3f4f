"""Disk cache for the outputs of a frozen module, shared by all trainings with the same inputs.

The key is a hash of the pixels, and of the module's config and weights, so stale entries are never used.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clips.core.cache import tensor_cache, tensor_digest
from clips.core.identity import cache_directory
from clips.data.images import normalize
from clips.errors import UserError

Forward = Callable[[Tensor], Tensor]
_CPU_ROWS = 32  # computed at a time: activations of a full batch do not fit a CPU's caches


def enable_trunk_cache(trunk: Any, image_size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
    """Cache the outputs of the frozen layers at the beginning of a timm trunk; the others are computed in each step.

    The trunk then reads pixels, too: uint8 images, which are normalized by ``mean`` and ``std`` of the channels if
    their outputs are missing. ``image_size`` is their height and width.

    Raises:
        UserError: no layer at its beginning is frozen, or its layers are no chain (a ViT adds positions in between).
    """

    def read_pixels(compute: Forward, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            colors = torch.tensor([mean, std], device=images.device)[..., None, None]
            images = normalize(images, *colors)
        return compute(images)

    variant = f"-{tensor_digest(torch.tensor([mean, std]))}"  # pixels have the same hash under any normalization
    if _is_frozen(trunk):
        compute = functools.partial(read_pixels, trunk.forward_features)
        # in its place, since open_clip's tower calls the trunk: a wrapper would change the names of the weights
        trunk.forward_features = FeatureCache(trunk, compute, variant)
        return
    frozen = _frozen_layers(trunk)
    forwards = [layer.forward for layer in frozen]  # as they are now: the layers' own are replaced below

    def compute_chain(images: Tensor) -> Tensor:
        return functools.reduce(lambda outputs, forward: forward(outputs), forwards, images)

    cache = FeatureCache(frozen, functools.partial(read_pixels, compute_chain), variant)
    device = next(trunk.parameters()).device
    images = torch.linspace(-1, 1, 3 * math.prod(image_size), device=device).view(1, 3, *image_size)
    if not any(True for _ in frozen.parameters()) or not _skip_layers(trunk, frozen, cache.compute, images):
        raise UserError(
            "model.cache_trunk_features: expected an image tower whose frozen layers form a chain, as those of "
            "TinyViT, ConvNeXt, EfficientNet and ResNet do, or no model.lock_image_unlocked_groups"
        )
    frozen[-1].forward = cache  # for the same reason


def compute_cached_layers(trunk: Any, images: Tensor) -> Tensor:
    """Return the outputs of a plain trunk's layers that `enable_trunk_cache` would cache; ``images`` are normalized."""
    return trunk.forward_features(images) if _is_frozen(trunk) else _frozen_layers(trunk)(images)


def _frozen_layers(trunk: nn.Module) -> nn.Sequential:
    layers = [layer for child in trunk.children() for layer in (child if isinstance(child, nn.Sequential) else [child])]
    return nn.Sequential(*itertools.takewhile(_is_frozen, layers))


def _is_frozen(module: nn.Module) -> bool:
    return not any(value.requires_grad for value in module.parameters())


@torch.no_grad()
def _skip_layers(trunk: Any, layers: nn.Sequential, compute: Forward, images: Tensor) -> bool:
    """Pass the images of a trunk through ``layers``, of which the last computes for all; whether its features stay."""
    was_training, _ = trunk.training, trunk.eval()
    expected = trunk.forward_features(images)
    for layer in layers[:-1]:  # which the trunk's own code calls; other modules in their place would have no weights
        layer.forward = nn.Identity().forward
    layers[-1].forward = compute
    try:
        return torch.equal(expected, trunk.forward_features(images))
    except (RuntimeError, AssertionError, ValueError):  # a layer between them cannot read images
        return False
    finally:
        trunk.train(was_training)


class FeatureCache:
    """A function of images that reads its output from the cache, or computes it.

    Args:
        module: its weights determine the outputs; it computes in evaluation mode.
        compute: inputs (B, …) → outputs (B, …).
        variant: other settings that determine the outputs, as a part of a file name.
    """

    def __init__(self, module: nn.Module, compute: Forward, variant: str) -> None:
        self.module = module
        self.compute = compute
        self.variant = variant
        self.in_memory: dict[tuple[str, str], Tensor] = {}

    @functools.cached_property
    def weights(self) -> str:
        """Hash of module and weights, computed at the first access, because weights may be loaded later."""
        return weights_digest(self.module)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs (B, …) of images (B, 3, S, S), on the module's device."""
        keys = [tensor_digest(row) for row in inputs.cpu()]
        dtype = torch.float32 if inputs.dtype == torch.uint8 else inputs.dtype
        device = next(self.module.parameters()).device
        autocast = torch.is_autocast_enabled(device.type)
        precision = torch.get_autocast_dtype(device.type) if autocast else dtype
        name = f"{self.weights}{self.variant}-{str(precision).removeprefix('torch.')}"
        cache = tensor_cache(cache_directory("trunks") / name)
        known = self.in_memory
        stored = {key: known[name, key] if (name, key) in known else cache.get(key) for key in set(keys)}
        outputs = {key: output for key, output in stored.items() if output is not None}
        missing = {key: index for index, key in enumerate(keys) if key not in outputs}
        if missing:
            computed = self.compute_outputs(inputs[list(missing.values())]).cpu()
            for key, output in zip(missing, computed, strict=True):
                outputs[key] = cache.put_first(key, output.clone(memory_format=torch.contiguous_format))
        self.in_memory |= {(name, key): output for key, output in outputs.items()}
        return torch.stack([outputs[key] for key in keys]).to(device)

    def compute_outputs(self, inputs: Tensor) -> Tensor:
        """The frozen module's outputs (B, …) of inputs (B, …), in eval mode."""
        was_training, _ = self.module.training, self.module.eval()
        parts = inputs.split(_CPU_ROWS) if inputs.device.type == "cpu" else [inputs]
        try:
            return torch.cat([self.compute(part) for part in parts])
        finally:
            self.module.train(was_training)


def weights_digest(module: nn.Module) -> str:
    """Hash of a module's structure and weights."""
    state = module.state_dict()
    structure = f"{module!r} {list(state)}".encode()
    return tensor_digest(torch.frombuffer(bytearray(structure), dtype=torch.uint8), *state.values())
