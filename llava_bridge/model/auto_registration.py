"""Register this suite's models with transformers when, and only if, its Auto classes are imported.

``import llava_bridge`` must register the configs of its tower and LLaVA, but importing transformers takes seconds that
``llava-bridge --help`` should not spend. The configs are therefore registered when transformers' modules are imported,
and the models when the first of these configs is created.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

AUTO_CONFIG_MODULE = "transformers.models.auto.configuration_auto"
AUTO_MODEL_MODULE = "transformers.models.auto.modeling_auto"
LLAVA_CONFIG_MODULE = "transformers.models.llava.configuration_llava"
"""The configs need the first module; the second must not be partially imported at that time."""
_VLLM_BACKEND = "vllm.model_executor.models.transformers:TransformersMultiModalForCausalLM"


def register_on_import() -> None:
    """Register the configs now if ``AutoConfig`` is already imported, else when it is."""
    if AUTO_CONFIG_MODULE in sys.modules:
        register_configs()
    if not any(isinstance(finder, _ImportObserver) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ImportObserver())


def register_with_transformers() -> None:
    """Register configs and models now."""
    register_configs()
    _register_models()


def register_with_vllm() -> None:
    """Register configs, models and their architectures: vLLM's plugin, which it calls in each of its processes.

    vLLM resolves only transformers' own architectures to its transformers backend; others must be in its registry
    (https://docs.vllm.ai/en/latest/design/plugin_system.html).
    """
    from vllm import ModelRegistry

    from llava_bridge.model import modeling_llava as llavas

    register_with_transformers()
    register_weight_names()
    for llava in (llavas.BridgeLlavaForConditionalGeneration, llavas.BridgeLlavaNextForConditionalGeneration):
        ModelRegistry.register_model(llava.__name__, _VLLM_BACKEND)


def register_weight_names() -> None:
    """Register how files name the weights of the LLaVAs without head, which are all that vLLM builds.

    transformers saves a LLaVA's language model as ``language_model.model``. Version 5.23 reads that in any class; 5.19,
    which vLLM 0.32 uses, in transformers' own classes only.
    """
    from transformers import conversion_mapping

    from llava_bridge.model.modeling_llava import BridgeLlavaModel, BridgeLlavaNextModel

    for model in (BridgeLlavaModel, BridgeLlavaNextModel):
        renaming = conversion_mapping.WeightRenaming(r"^model\.language_model\.model\.", "model.language_model.")
        conversion_mapping.register_checkpoint_conversion_mapping(model.__name__, [renaming], overwrite=True)


def register_configs() -> None:
    """Register the configs with transformers' ``AutoConfig``; further calls do nothing."""
    from transformers import AutoConfig

    from llava_bridge.model.configuration_llava import (
        BridgeLlavaConfig,
        BridgeLlavaNextConfig,
        EncoderVisionConfig,
        on_first_instantiation,
    )

    on_first_instantiation(_register_models)
    for config in (EncoderVisionConfig, BridgeLlavaConfig, BridgeLlavaNextConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    """Register the models with transformers' Auto classes."""
    from transformers import AutoModel, AutoModelForImageTextToText

    from llava_bridge.model.configuration_llava import EncoderVisionConfig
    from llava_bridge.model.modeling_llava import (
        BridgeLlavaForConditionalGeneration,
        BridgeLlavaModel,
        BridgeLlavaNextForConditionalGeneration,
        BridgeLlavaNextModel,
    )
    from llava_bridge.model.modeling_vision import EncoderVisionModel

    AutoModel.register(EncoderVisionConfig, EncoderVisionModel, exist_ok=True)
    for model in (BridgeLlavaModel, BridgeLlavaNextModel):
        AutoModel.register(model.config_class, model, exist_ok=True)
    for llava in (BridgeLlavaForConditionalGeneration, BridgeLlavaNextForConditionalGeneration):
        AutoModelForImageTextToText.register(llava.config_class, llava, exist_ok=True)


class _ImportObserver(importlib.abc.MetaPathFinder):
    """Registers the configs after the import of the modules that they need."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        observed = (AUTO_CONFIG_MODULE, AUTO_MODEL_MODULE, LLAVA_CONFIG_MODULE)
        if name not in observed or name in self.seen or name in sys.modules:
            return None
        self.seen.add(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__name__ == LLAVA_CONFIG_MODULE:
            register_configs()
        elif LLAVA_CONFIG_MODULE not in sys.modules and (
            module.__name__ == AUTO_MODEL_MODULE or AUTO_MODEL_MODULE not in sys.modules
        ):
            importlib.import_module(LLAVA_CONFIG_MODULE)  # a module in sys.modules is currently importing this one
