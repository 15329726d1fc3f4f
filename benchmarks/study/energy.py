"""How much energy a step took, where the machine's own counters tell.

GPUs: NVML's count of millijoules since the driver was loaded (Volta and later), read by NVIDIA's ``nvidia-ml-py`` where
that is installed (the extra ``energy``). Processors: RAPL's counters under ``/sys/class/powercap``, which only root may
read on most machines (since the attack CVE-2020-8694). Both count what the whole device took in the time: other work on
it is in the number as well, that of other steps of the study included.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")  # AMD's carry the same name; their parts, intel-rapl:0:1, are within
_EVERY_SECONDS = 30.0  # a processor's counter begins anew after minutes
_JOULES_PER_WATT_HOUR = 3600.0


class Meter:
    """Measures from when it is made.

    Args:
        visible: CUDA_VISIBLE_DEVICES of who is measured; None: all GPUs.
        powercap: where the processors' counters are.
    """

    def __init__(self, visible: str | None = None, *, powercap: Path = POWERCAP) -> None:
        self.handles = list(_gpus(visible))
        self.packages = sorted(path for path in _entries(powercap) if _PACKAGE.fullmatch(path.name))
        self.gpus_began = [_gpu_joules(handle) for handle in self.handles]
        self.last = {path: _microjoules(path / "energy_uj") for path in self.packages}
        self.processors = 0.0
        self._sampled = time.monotonic()

    def sample(self) -> None:
        """Note the counters, not more often than needed; to be called every minute at least."""
        if self.packages and time.monotonic() - self._sampled > _EVERY_SECONDS:
            self._read()

    def watt_hours(self) -> dict[str, float]:
        """``"gpus"`` and ``"processors"`` → watt hours until now; what nobody tells is left out."""
        self._read()
        told: dict[str, float] = {}
        gpus = [
            now - before
            for handle, before in zip(self.handles, self.gpus_began, strict=True)
            if before is not None and (now := _gpu_joules(handle)) is not None
        ]
        if gpus:
            told["gpus"] = sum(gpus) / _JOULES_PER_WATT_HOUR
        if any(value is not None for value in self.last.values()):
            told["processors"] = self.processors / _JOULES_PER_WATT_HOUR
        return {name: round(value, 4) for name, value in told.items()}

    def _read(self) -> None:
        self._sampled = time.monotonic()
        for path in self.packages:
            before, now = self.last[path], _microjoules(path / "energy_uj")
            if before is not None and now is not None:
                begun_anew = (_microjoules(path / "max_energy_range_uj") or 0) if now < before else 0
                self.processors += (now - before + begun_anew) / 1e6
            self.last[path] = now


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _microjoules(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _gpus(visible: str | None) -> Iterator[Any]:
    """NVML's handles of the GPUs that ``visible`` names; none without the library or a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # whatever a missing or broken driver raises: nothing can be measured then
        return
    named = range(pynvml.nvmlDeviceGetCount()) if visible is None else filter(None, visible.split(","))
    for name in named:
        with contextlib.suppress(pynvml.NVMLError):  # a slice of a GPU (MIG) has no counter of its own
            number = str(name).strip()
            if number.isdecimal():
                yield pynvml.nvmlDeviceGetHandleByIndex(int(number))
            else:
                yield pynvml.nvmlDeviceGetHandleByUUID(number)


def _gpu_joules(handle: Any) -> float | None:
    import pynvml

    try:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except pynvml.NVMLError:
        return None
