"""Make transformers know our vision tower as soon as, and only if, its LLaVA is imported.

``import llava_bridge`` must teach transformers the tower's config and class, but importing transformers'
modelling code takes many seconds, which commands such as ``llava-bridge --help`` should not pay. So the
registration waits on the import of LLaVA's config module, through which every way of loading a LLaVA goes.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

AWAITED = "transformers.models.llava.configuration_llava"


def register_on_import() -> None:
    """Register the tower now if transformers' LLaVA is already imported, else at the moment it is."""
    if AWAITED in sys.modules:
        register()
    elif not any(isinstance(finder, _Waiter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiter())


def register() -> None:
    """Enter the tower into transformers' ``AutoConfig`` and ``AutoModel``; calling it again does nothing."""
    from transformers import AutoConfig, AutoModel

    from llava_bridge.vision import EncoderVisionConfig, EncoderVisionModel

    AutoConfig.register(EncoderVisionConfig.model_type, EncoderVisionConfig, exist_ok=True)
    AutoModel.register(EncoderVisionConfig, EncoderVisionModel, exist_ok=True)


class _Waiter(importlib.abc.MetaPathFinder):
    """Sees the awaited module being imported, steps aside, and registers once the module is complete."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        register()
