"""What a frozen module makes of a picture, kept on disk: trainings that see the same pixels again need not run it.

A picture is known by its pixels, a module by what it is made of and its weights: nothing stale is ever found. Without
crops and flips a data set is computed once for all trainings that use it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from clips.core.cache import cache_directory, tensor_cache

Forward = Callable[[Tensor], Tensor]


def keep_outputs(trunk: nn.Module) -> None:
    """Let ``trunk.forward_features`` of a frozen timm trunk look its output (B, …) up, and compute what is missing."""
    kept = KeptOutputs(trunk, trunk.forward_features, kind="trunks", remember=True)  # type: ignore[arg-type]
    trunk.forward_features = kept  # type: ignore[assignment]


class KeptOutputs:
    """A function of pictures that looks its output up, and computes what is missing.

    Args:
        module: whose weights the outputs depend on; it is put into evaluation mode while it computes.
        compute: pictures (B, 3, S, S) → outputs (B, …).
        kind: the cache's folder.
        variant: what else the outputs depend on.
        remember: keep in memory, too, what was read or computed.
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
        """Known when the first picture comes, or when asked for: until then weights may still be loaded."""
        state = self.module.state_dict()
        made_of = f"{self.module!r} {list(state)}".encode()
        return _digest(torch.frombuffer(bytearray(made_of), dtype=torch.uint8), *state.values())

    def know_weights(self) -> None:
        """Take the weights of now: later they may be rounded, or lie in parts."""
        _ = self.weights

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """The outputs (B, …) of pictures (B, 3, S, S)."""
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
