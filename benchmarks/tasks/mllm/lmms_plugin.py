"""Entry point of lmms-eval's group ``lmms_eval.models``: this suite's LLaVA as ``llava_bridge``.

python -m lmms_eval --model llava_bridge --model_args pretrained=DIR --tasks pope --batch_size 32
"""

from lmms_eval.models.registry_v2 import ModelManifest

MODEL_MANIFEST = ModelManifest(
    model_id="llava_bridge", simple_class_path="benchmarks.tasks.mllm.llava_model.LlavaBridgeModel"
)
