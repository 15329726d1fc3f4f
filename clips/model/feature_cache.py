"""Disk cache for the outputs of a frozen module, shared by all trainings with the same pixels.

The key is a hash of the pixels, and of the module's config and weights, so stale entries are never used.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from clips.core.cache import cache_directory, tensor_cache

Forward = Callable[[Tensor], Tensor]


def enable_feature_cache(trunk: nn.Module) -> None:
    """Cache the outputs (B, …) of a frozen timm trunk's ``forward_features``."""
    cache = FeatureCache(trunk, trunk.forward_features)  # type: ignore[arg-type]
    trunk.forward_features = cache  # type: ignore[assignment]


class FeatureCache:
    """A function of images that reads its output from the cache, or computes it.

    Args:
        module: its weights determine the outputs; it computes in evaluation mode.
        compute: images (B, 3, S, S) → outputs (B, …).
    """

    def __init__(self, module: nn.Module, compute: Forward) -> None:
        self.module = module
        self.compute = compute
        self.in_memory: dict[tuple[str, str], Tensor] = {}

    @functools.cached_property
    def weights(self) -> str:
        """Hash of module and weights, computed at the first access, because weights may be loaded later."""
        return weights_digest(self.module)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Return the outputs (B, …) of images (B, 3, S, S)."""
        device = image.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
        name = f"{self.weights}-{str(precision).removeprefix('torch.')}"
        cache = tensor_cache(cache_directory("trunks") / name)
        keys = [digest(pixels) for pixels in image.cpu()]
        outputs: dict[str, Tensor] = {}
        for key in set(keys):
            output = self.in_memory.get((name, key))
            output = cache.get(key) if output is None else output
            if output is not None:
                outputs[key] = output
        missing = {key: index for index, key in enumerate(keys) if key not in outputs}
        if missing:
            for key, output in zip(missing, self._compute(image[list(missing.values())]).cpu(), strict=True):
                outputs[key] = output.clone(memory_format=torch.contiguous_format)
                cache.put(key, outputs[key])
        self.in_memory |= {(name, key): output for key, output in outputs.items()}
        return torch.stack([outputs[key] for key in keys]).to(image.device)

    def _compute(self, image: Tensor) -> Tensor:
        was_training, _ = self.module.training, self.module.eval()
        try:
            return self.compute(image)
        finally:
            self.module.train(was_training)


def weights_digest(module: nn.Module) -> str:
    """Hash of a module's structure and weights."""
    state = module.state_dict()
    structure = f"{module!r} {list(state)}".encode()
    return digest(torch.frombuffer(bytearray(structure), dtype=torch.uint8), *state.values())


def digest(*values: Tensor) -> str:
    """Hash of tensors: shapes, dtypes and contents."""
    total = hashlib.blake2b(digest_size=16)
    for value in values:
        total.update(f"{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
