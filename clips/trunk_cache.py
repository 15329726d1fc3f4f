"""What a frozen trunk makes of a picture, kept on disk: trainings that see the same pixels again need not run it.

A picture is known by its pixels, a trunk by its weights, so that nothing stale is ever found. Without crops and flips
a data set is computed once for all trainings of a study.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clips.artifact import writing

Forward = Callable[[Tensor], Tensor]


def cache_directory() -> Path:
    """Where the outputs lie: ``clips/trunks`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clips" / "trunks"


def keep_outputs(trunk: nn.Module) -> None:
    """Let ``trunk.forward_features`` of a frozen timm trunk look its output (B, …) up, and compute what is missing."""
    trunk.forward_features = _Kept(trunk)  # type: ignore[assignment]


class _Kept:
    def __init__(self, trunk: nn.Module) -> None:
        self.trunk = trunk
        self.compute: Forward = trunk.forward_features  # type: ignore[assignment]
        self.held: dict[Path, Tensor] = {}

    @functools.cached_property
    def weights(self) -> str:
        """Known when the first picture comes: until then weights may still be loaded."""
        return _digest(*self.trunk.state_dict().values())

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        device = image.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else image.dtype
        folder = cache_directory() / f"{self.weights}-{str(precision).removeprefix('torch.')}"
        files = [folder / _digest(picture) for picture in image.cpu()]
        missing = [number for number, file in enumerate(files) if file not in self.held and not self._read(file)]
        if missing:
            for number, output in zip(missing, self._run(image[missing]).cpu(), strict=True):
                self._write(files[number], output)
        return torch.stack([self.held[file] for file in files]).to(image.device)

    def _run(self, image: Tensor) -> Tensor:
        learns, _ = self.trunk.training, self.trunk.eval()
        try:
            return self.compute(image)
        finally:
            self.trunk.train(learns)

    def _read(self, file: Path) -> bool:
        try:
            self.held[file] = load_file(file)["features"]
        except (OSError, SafetensorError, KeyError):
            return False
        return True

    def _write(self, file: Path, output: Tensor) -> None:
        self.held[file] = output.clone(memory_format=torch.contiguous_format)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": self.held[file]}, partial)
            partial.replace(file)


def _digest(*values: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        digest.update(f"{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
