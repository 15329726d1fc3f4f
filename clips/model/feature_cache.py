"""Disk cache for the outputs of a frozen module: trainings with the same pixels need not run it again.

The key is a hash of the pixels, and of the module's config and weights, so stale entries are never used. Without crops
and flips a dataset is computed once for all trainings that use it.
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
    """Let ``trunk.forward_features`` of a frozen timm trunk read its output (B, …) from the cache, or compute it."""
    kept = FeatureCache(trunk, trunk.forward_features, kind="trunks", remember=True)  # type: ignore[arg-type]
    trunk.forward_features = kept  # type: ignore[assignment]


class FeatureCache:
    """A function of images that reads its output from the cache, or computes it.

    Args:
        module: determines the outputs by its weights; it is in evaluation mode while it computes.
        compute: images (B, 3, S, S) → outputs (B, …).
        kind: the cache's directory.
        variant: other settings that the outputs depend on.
        remember: also keep the outputs in memory.
    """

    def __init__(
        self, module: nn.Module, compute: Forward, *, kind: str, variant: str = "", remember: bool = False
    ) -> None:
        self.module = module
        self.compute = compute
        self.kind = kind
        self.variant = variant
        self.remember = remember
        self.held: dict[tuple[str, str], Tensor] = {}

    @functools.cached_property
    def weights(self) -> str:
        """Computed at the first image or first access: until then weights may still be loaded."""
        state = self.module.state_dict()
        made_of = f"{self.module!r} {list(state)}".encode()
        return _digest(torch.frombuffer(bytearray(made_of), dtype=torch.uint8), *state.values())

    def freeze_weights_hash(self) -> None:
        """Hash the current weights: later they may be rounded or sharded."""
        _ = self.weights

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Return the outputs (B, …) of images (B, 3, S, S)."""
        device = image.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
        name = f"{self.weights}{self.variant}-{str(precision).removeprefix('torch.')}"
        cache = tensor_cache(cache_directory(self.kind) / name)
        keys = [_digest(picture) for picture in image.cpu()]
        found: dict[str, Tensor] = {}
        for key in set(keys):
            output = self.held.get((name, key))
            output = cache.get(key) if output is None else output
            if output is not None:
                found[key] = output
        missing = {key: index for index, key in enumerate(keys) if key not in found}
        if missing:
            for key, output in zip(missing, self._run(image[list(missing.values())]).cpu(), strict=True):
                found[key] = output.clone(memory_format=torch.contiguous_format)
                cache.put(key, found[key])
        if self.remember:
            self.held |= {(name, key): output for key, output in found.items()}
        return torch.stack([found[key] for key in keys]).to(image.device)

    def _run(self, image: Tensor) -> Tensor:
        learns, _ = self.module.training, self.module.eval()
        try:
            return self.compute(image)
        finally:
            self.module.train(learns)


def _digest(*values: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
