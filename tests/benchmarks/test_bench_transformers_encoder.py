"""Retrieval by models of transformers that have a text tower: the vectors are their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_world as world
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks.results.results import read_items
from benchmarks.tasks.encoders import embedding
from benchmarks.tasks.encoders.dual_encoder import load_transformers_encoder
from benchmarks.tasks.eval_model import EvalModel
from benchmarks.tasks.registry import configure
from benchmarks.tasks.run_benchmarks import RunConfig
from clips.errors import UserError
from llava_bridge.encoders import has_text_tower

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
SMALL = {**VIT, "intermediate_size": 48}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"vocab_size": 13, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"vision_config": SMALL, "text_config": TEXT}
CONFIGS = {
    "clip": lambda: transformers.CLIPConfig(**SIZES, projection_dim=16),
    "metaclip2": lambda: transformers.MetaClip2Config(**SIZES, projection_dim=16),
    "siglip": lambda: transformers.SiglipConfig(**SIZES),
    "siglip2": lambda: transformers.Siglip2Config(vision_config={**SMALL, "num_patches": 64}, text_config=TEXT),
    "aimv2": lambda: transformers.Aimv2Config(**SIZES, projection_dim=16),
    "tipsv2": lambda: transformers.Tipsv2Config(vision_config={**VIT, "mlp_ratio": 2}, text_config=TEXT),
}
WORDS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "a", "red", "green", "blue", "car", "dog", "on", "grass"]
TEXTS = ["a red car", "dog", "a green car on grass on a red car", ""]


def write_model(config: Any, directory: Path) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    for value in model.parameters():
        if value.ndim:
            torch.nn.init.normal_(value, std=0.1)
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 2)])
    names = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(directory)
    processor = {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 32, "width": 32}}
    processor |= {"size": {"shortest_edge": 32}, "resample": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def draw_image(index: int) -> Image.Image:
    rng = np.random.default_rng(index)
    return Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "siglip2"])
def test_vectors_are_the_models_own(name: str, tmp_path: Path) -> None:
    encoder = load_transformers_encoder(str(write_model(CONFIGS[name](), tmp_path)), "cpu", "auto")
    images = embedding.embed_images(encoder, draw_image, ["one", "two"], 2)
    texts = embedding.embed_texts(encoder, TEXTS, 3)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    fields = {"input_ids": inputs.input_ids}
    if name != "siglip":  # whose own processor gives no mask
        fields["attention_mask"] = inputs.attention_mask
    pixels = processor([draw_image(0), draw_image(1)], return_tensors="pt").pixel_values
    with torch.no_grad():
        own = model(pixel_values=pixels, **fields)
    for found, expected in ((images, own.image_embeds), (texts, own.text_embeds)):
        torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert (texts[0] - texts[1]).abs().max() > 1e-3
    cleaned = {"siglip": "canonicalize", "clip": "whitespace"}
    cleaning = {"input_text_cleaning": f"open_clip's {cleaned[name]}"} if name in cleaned else {}
    assert encoder.preprocessing == {
        "input_resolution": 32,
        "input_resize": "shortest",
        "input_interpolation": "bilinear",
        "input_library": f"transformers {transformers.__version__}",
        **cleaning,
    }


@pytest.mark.parametrize(("name", "cleaned"), [("siglip", True), ("siglip2", True), ("clip", False)])
def test_texts_of_siglip_are_cleaned_as_by_open_clip(name: str, cleaned: bool, tmp_path: Path) -> None:
    """The tokenizer of fixed-resolution SigLIP 2 keeps case and punctuation; open_clip's configs remove both."""
    directory = write_model(CONFIGS[name](), tmp_path)
    if name == "siglip2":
        transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=20).save_pretrained(directory)
    encoder = load_transformers_encoder(str(directory), "cpu", "auto")
    written, plain = encoder.tokenizer(["A.a red_car on GRASS!", "aa red car on grass"]).tolist()
    assert (written == plain) is cleaned


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_images_of_naflex_are_squashed(precision: str, tmp_path: Path) -> None:
    """To more than 256 patches: bfloat16, which has no odd numbers above it, must not hold their number."""
    directory = write_model(CONFIGS["siglip2"](), tmp_path)
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=300)
    processor.save_pretrained(directory)
    encoder = load_transformers_encoder(str(directory), "cpu", precision)
    images = [draw_image(0), draw_image(1).resize((90, 20)), draw_image(2).resize((16, 70))]
    inputs = processor([image.resize((136, 136), processor.resample) for image in images], return_tensors="pt")
    assert inputs.spatial_shapes.tolist() == [[17, 17]] * 3
    found = embedding.embed_images(encoder, images.__getitem__, ["a", "b", "c"], 3)
    model = transformers.AutoModel.from_pretrained(directory, dtype=getattr(torch, precision)).eval()
    with torch.no_grad():
        own = model.get_image_features(**inputs.to(dtype=model.dtype)).pooler_output.float()
    tolerance = 1e-5 if precision == "float32" else 5e-3
    torch.testing.assert_close(found, torch.nn.functional.normalize(own, dim=-1), atol=tolerance, rtol=0)
    stated = {name: encoder.preprocessing[name] for name in ("input_resolution", "input_resize")}
    assert stated == {"input_resolution": 136, "input_resize": "squash"}


def test_retrieval_compares_the_projected_vectors(tmp_path: Path) -> None:
    directory = write_model(CONFIGS["clip"](), tmp_path / "clip")
    data = world.write_shards(tmp_path / "data")
    benchmark = configure(name="retrieval", data=str(data))
    result = world.measure(tmp_path / "results", benchmark, encoder=f"transformers:{directory}")
    assert result.protocol["input_resolution"] == 32
    assert len(read_items(result)) > 0


def test_the_interpolation_is_that_of_the_directory(tmp_path: Path) -> None:
    directory = write_model(CONFIGS["clip"](), tmp_path)
    file = directory / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 1}))
    assert load_transformers_encoder(str(directory), "cpu", "auto").preprocessing["input_interpolation"] == "lanczos"


def test_models_without_a_text_tower_are_rejected(tmp_path: Path) -> None:
    dino = transformers.Dinov2Config(**VIT)
    write_model(dino, tmp_path / "dino")
    config = {"output": "unused", "benchmarks": [configure(name="retrieval", data="d")]}
    row = EvalModel(RunConfig(model_name="row", encoder=f"transformers:{tmp_path / 'dino'}", **config))
    with pytest.raises(
        UserError, match=r"dino is a dinov2; expected a text tower .* that of a clip, metaclip_2, siglip"
    ):
        _ = row.encoder
    assert [has_text_tower(f"transformers:{tmp_path / name}") for name in ("dino", "none")] == [False] * 2
    transformers.CLIPConfig(**SIZES).save_pretrained(tmp_path / "clip")
    assert has_text_tower(f"transformers:{tmp_path / 'clip'}")
