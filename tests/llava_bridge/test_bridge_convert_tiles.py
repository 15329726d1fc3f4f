"""LLaVA-1.6 in its first authors' layout, with tiles, becomes transformers' LLaVA-NeXT, and comes back."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import bridge_world
import original_world as world
import pytest
import torch
from original_world import expect_no_conversion as rejected
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_bridge import load_llava
from llava_bridge.model.build import make_conversation_encoder
from llava_bridge.model.llava_files import load_for_training

QUESTION = "What's AB?"
SIDE, GRID = world.SIZE, world.SIZE // world.PATCH
PINPOINTS = [[64, 32], [32, 96], [64, 64]]  # widths and heights: no pair is another turned round
STATED = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": PINPOINTS,
    "model_type": "llava",
    "unfreeze_mm_vision_tower": True,
}
NEWLINE = torch.linspace(-1, 1, 32)
SHAPES = [(50, 20), (20, 70), (60, 60), (33, 31)]


@pytest.fixture(scope="module")
def parts(original_parts: world.Parts) -> world.Parts:
    return original_parts


@pytest.fixture(scope="module")
def original(parts: world.Parts, original_tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As LLaVA-1.6 is: the trained tower and the newline are among the weights, in safetensors."""
    folder = tmp_path_factory.mktemp("tiles")
    options: dict[str, Any] = {"pickled": False, "shards": 1, **STATED}
    directory = world.write_original(parts, folder / "original", str(original_tower), **options)
    weights = load_file(directory / "model.safetensors")
    for name, value in parts.tower.state_dict().items():
        weights[f"model.vision_tower.vision_tower.vision_model.{name}"] = value.clone()
    save_file({**weights, "model.image_newline": NEWLINE.clone()}, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module")
def converted(original: Path) -> Path:
    return world.convert(original, original.parent / "hf")


def draw_image(width: int, height: int) -> Image.Image:
    """Noise without extremes, which PIL cuts off in the middle of scaling."""
    generator = torch.Generator().manual_seed(width)
    noise = torch.randint(64, 192, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def best_pinpoint(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the pinpoint that keeps most of the image and, of like ones, has the smallest bars."""

    def merit(pinpoint: tuple[int, int]) -> tuple[int, int]:
        scale = min(pinpoint[0] / size[0], pinpoint[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(((width, height) for width, height in PINPOINTS), key=merit)


def tiles(shown: Image.Image) -> Tensor:
    """(N, 3, S, S): the image squashed, then the tiles of the image between bars of black, row by row."""
    wide, high = best_pinpoint(shown.size)
    scale = min(wide / shown.width, high / shown.height)
    fitted = shown.resize((min(math.ceil(shown.width * scale), wide), min(math.ceil(shown.height * scale), high)))
    canvas = Image.new("RGB", (wide, high))
    canvas.paste(fitted, ((wide - fitted.width) // 2, (high - fitted.height) // 2))
    corners = [(left, top) for top in range(0, high, SIDE) for left in range(0, wide, SIDE)]
    cut = [canvas.crop((left, top, left + SIDE, top + SIDE)) for left, top in corners]
    pixels = [torch.tensor(list(one.get_flattened_data())) for one in [shown.resize((SIDE, SIDE)), *cut]]
    whole = torch.stack(pixels).view(-1, SIDE, SIDE, 3) / 255
    return ((whole - torch.tensor(world.MEAN)) / torch.tensor(world.STD)).permute(0, 3, 1, 2)


@torch.no_grad()
def expected_logits(parts: world.Parts, texts: list[list[int]], size: tuple[int, int], pixels: Tensor) -> Tensor:
    """What the original computes: overview, then the joined tiles without the bars, a newline after each row."""
    state = parts.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    overview, *rest = parts.projector(state)
    wide, high = (length // SIDE for length in best_pinpoint(size))
    joined = torch.stack(rest).view(high, wide, GRID, GRID, -1).permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)
    rows, columns = high * GRID, wide * GRID
    if size[0] / size[1] > columns / rows:
        bar = (rows - int(size[1] * columns / size[0])) // 2
        joined = joined[bar : rows - bar]
    else:
        bar = (columns - int(size[0] * rows / size[1])) // 2
        joined = joined[:, bar : columns - bar]
    ended = torch.cat([joined, NEWLINE.expand(len(joined), 1, -1)], dim=1)
    embed = parts.llm.get_input_embeddings()
    first, second = (embed(torch.tensor([text]))[0] for text in texts)
    return parts.llm(inputs_embeds=torch.cat([first, overview, ended.flatten(0, 1), second])[None]).logits[0]


def ask(directory: Path, shown: Image.Image) -> tuple[str, Tensor, Tensor]:
    """The prompt, the logits at each of its tokens, and the pixels."""
    model, processor = load_llava(directory, device="cpu")
    talk = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
    text = make_conversation_encoder(model, processor).prompt(talk)
    pixels = processor.image_processor(shown, return_tensors="pt")["pixel_values"][0]
    return text, bridge_world.logits(model, processor, shown, QUESTION)[0], pixels


@pytest.mark.parametrize("size", SHAPES)
def test_the_same_pixels_and_logits_as_by_hand(size: tuple[int, int], parts: world.Parts, converted: Path) -> None:
    text, logits, pixels = ask(converted, draw_image(*size))
    torch.testing.assert_close(pixels, tiles(draw_image(*size)), atol=0.03, rtol=0)
    first, *_, last = text.replace("<s> ", "").split("<image>")
    texts = parts.ids(f"{first}<image>{last.removeprefix(' ')}")
    expected = expected_logits(parts, texts, size, pixels)
    assert len(logits) == len(expected)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, atol=1e-5, rtol=1e-5)


def test_tiles_are_resized_bicubically_with_any_tower(parts: world.Parts, original: Path, tmp_path: Path) -> None:
    tower = world.write_tower(parts, tmp_path / "tower")
    set_resample(tower / "preprocessor_config.json", 2)
    source = world.restated(original, {"mm_vision_tower": str(tower)}, tmp_path / "other")
    hf = world.convert(source, tmp_path / "hf")
    pixels = ask(hf, draw_image(*SHAPES[0]))[2]
    torch.testing.assert_close(pixels, tiles(draw_image(*SHAPES[0])), atol=0.03, rtol=0)
    set_resample(hf / "processor_config.json", 2)
    rejected(hf, r"hf: resample: the original LLaVA resizes tiles by 3 \(bicubic\), got 2", format="original")


def set_resample(file: Path, number: int) -> None:
    stated = json.loads(file.read_text())
    stated.get("image_processor", stated)["resample"] = number
    file.write_text(json.dumps(stated))


def test_it_is_transformers_own_llava_next(converted: Path) -> None:
    stated = json.loads((converted / "config.json").read_text())
    assert stated["architectures"] == ["LlavaNextForConditionalGeneration"]
    assert stated["image_grid_pinpoints"] == [[32, 64], [96, 32], [64, 64]]  # heights and widths
    assert stated["vision_config"]["model_type"] == "clip_vision_model"
    names = load_file(converted / "model.safetensors")
    assert torch.equal(names["image_newline"], NEWLINE)
    expected = {"image_newline", "language_model", "multi_modal_projector", "vision_tower"}
    assert {name.partition(".")[0] for name in names} == expected
    model, _ = load_for_training(str(converted), "auto")  # and it can be trained further
    assert torch.equal(model.model.image_newline, NEWLINE)


def test_pinpoints_may_be_written_as_python_writes_them(original: Path, tmp_path: Path) -> None:
    """So LLaVA's training writes what its command line said."""
    world.convert(
        world.restated(original, {"image_grid_pinpoints": "[(64, 32), (32, 96)]"}, tmp_path / "other"), tmp_path / "hf"
    )
    assert load_llava(tmp_path / "hf", "cpu")[1].image_processor.image_grid_pinpoints == [[32, 64], [96, 32]]


def test_conversion_and_back_is_the_identity(original: Path, converted: Path, tmp_path: Path) -> None:
    world.convert(converted, tmp_path / "back", format="original")
    stated, before = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", original))
    for name in ("image_aspect_ratio", "mm_patch_merge_type", "image_grid_pinpoints", "mm_vision_select_layer"):
        assert stated[name] == before[name], name
    preprocess = json.loads((tmp_path / "back" / "vision_tower" / "preprocessor_config.json").read_text())
    assert (preprocess["size"], preprocess["crop_size"]) == ({"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE})
    weights, known = load_file(tmp_path / "back" / "model.safetensors"), load_file(original / "model.safetensors")
    assert torch.equal(weights["model.image_newline"], NEWLINE)
    for name in known.keys() & weights.keys():
        assert torch.equal(weights[name][: len(known[name])], known[name]), name
    left_out = {name for name in known if "vision_tower" not in name} - weights.keys()
    assert left_out == {"model.layers.0.self_attn.rotary_emb.inv_freq"}
    world.convert(tmp_path / "back", tmp_path / "again")
    for size in SHAPES[:2]:
        for mine, theirs in zip(
            ask(converted, draw_image(*size)), ask(tmp_path / "again", draw_image(*size)), strict=True
        ):
            assert mine == theirs if isinstance(mine, str) else torch.equal(mine, theirs)


FIELDS: dict[str, tuple[Any, str]] = {
    "mm_patch_merge_type": ("flat", "mm_patch_merge_type: .* only spatial_unpad with image_aspect_ratio anyres"),
    "image_aspect_ratio": ("anyres_max_9", "image_aspect_ratio: .* only pad or square or anyres, got anyres_max"),
    "image_grid_pinpoints": ("(1x1),...,(6x6)", "image_grid_pinpoints: expected pairs of width and height, got .1x1"),
    "mm_vision_select_feature": ("cls_patch", "select_strategy: expected default with image_aspect_ratio anyres"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_tiles_that_transformers_does_not_join(field: str, original: Path, tmp_path: Path) -> None:
    value, match = FIELDS[field]
    rejected(world.restated(original, {field: value}, tmp_path / "other"), match)


def test_tiles_and_their_newline_go_together(original: Path, tmp_path: Path) -> None:
    flat = {"image_aspect_ratio": "pad", "mm_patch_merge_type": "flat"}
    rejected(world.restated(original, flat, tmp_path / "flat"), r"model\.image_newline, but no anyres")
    weights = load_file(original / "model.safetensors")
    del weights["model.image_newline"]
    (tmp_path / "none").mkdir()
    save_file(weights, tmp_path / "none" / "model.safetensors")
    (tmp_path / "none" / "config.json").write_text((original / "config.json").read_text())
    rejected(tmp_path / "none", r"no model\.image_newline in it, which LLaVA's tiles need")


def test_a_llava_with_tiles_whose_processor_makes_none_has_no_original(converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted, tmp_path / "hf")
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = tmp_path / "hf" / name
        if path.is_file():
            stated = json.loads(path.read_text())
            images = stated.get("image_processor", stated)
            del images["image_grid_pinpoints"]
            images["image_processor_type"] = "CLIPImageProcessor"
            path.write_text(json.dumps(stated))
    rejected(tmp_path / "hf", "a LLaVA-NeXT whose processor makes no tiles", format="original")
