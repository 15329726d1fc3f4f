"""Registration of this suite's models with transformers and with vLLM."""

from __future__ import annotations

_VLLM_BACKEND = "vllm.model_executor.models.transformers:TransformersMultiModalForCausalLM"


def register() -> None:
    """Register configs and models with transformers' Auto classes, which then load this suite's LLaVAs.

    ``import llava_bridge`` does not, since importing transformers takes seconds that ``llava-bridge --help`` should not
    spend. Functions of this package that load a LLaVA call it; further calls do nothing.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

    from llava_bridge.model import modeling_llava as llavas
    from llava_bridge.model.modeling_vision import EncoderVisionConfig, EncoderVisionModel

    AutoConfig.register(EncoderVisionConfig.model_type, EncoderVisionConfig, exist_ok=True)
    AutoModel.register(EncoderVisionConfig, EncoderVisionModel, exist_ok=True)
    for model in (llavas.BridgeLlavaModel, llavas.BridgeLlavaNextModel):  # without head, as vLLM builds them
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModel.register(model.config_class, model, exist_ok=True)
    for llava in (llavas.BridgeLlavaForConditionalGeneration, llavas.BridgeLlavaNextForConditionalGeneration):
        AutoModelForImageTextToText.register(llava.config_class, llava, exist_ok=True)


def register_with_vllm() -> None:
    """Register configs, models and their architectures: vLLM's plugin, which it calls in each of its processes.

    vLLM resolves only transformers' own architectures to its transformers backend; others must be in its registry
    (https://docs.vllm.ai/en/latest/design/plugin_system.html).
    """
    from vllm import ModelRegistry

    from llava_bridge.model import modeling_llava as llavas

    register()
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
