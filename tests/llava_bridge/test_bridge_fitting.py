"""How images become squares, by hand, and as saved LLaVAs do it; the stage that does it otherwise."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import bridge_world
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from llava_bridge.encoders.encoder import ImagePreprocess
from llava_bridge.model.build import LlavaParts, build_llava
from llava_bridge.model.image_processing import Fit, make_image_processor, with_aspect_ratio

PIXELS = ImagePreprocess(size=8, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0), interpolation="bicubic")
MEAN = (127, 63, 0)  # integers of a byte, as LLaVA rounds them


def halves(width: int, height: int) -> Image.Image:
    """White on the left or top, black on the right or bottom."""
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[: height // 2 if height > width else height, : width // 2 if width >= height else width] = 255
    return Image.fromarray(array)


def shown(processor: Any, picture: Image.Image) -> torch.Tensor:
    """Pixels (3, S, S), not normalized."""
    pixels = processor([picture], return_tensors="pt")["pixel_values"][0]
    return pixels * torch.tensor(PIXELS.std)[:, None, None] + torch.tensor(PIXELS.mean)[:, None, None]


def test_pad_keeps_the_shape_between_bars_of_the_mean_color() -> None:
    for size in ((32, 16), (16, 32)):
        pixels = shown(make_image_processor(PIXELS, "pad"), halves(*size))
        square = Image.new("RGB", (32, 32), MEAN)
        square.paste(halves(*size), ((32 - size[0]) // 2, (32 - size[1]) // 2))
        assert torch.equal(pixels, shown(make_image_processor(PIXELS, "squash"), square))
        pixels = pixels if size == (32, 16) else pixels.transpose(1, 2)
        bar = torch.tensor(MEAN)[:, None, None] / 255
        assert torch.allclose(pixels[:, [0, 7]], bar, atol=0.02)
        assert torch.allclose(pixels[:, 3:5, :3], torch.ones(()), atol=0.02)
        assert torch.allclose(pixels[:, 3:5, 5:], torch.zeros(()), atol=0.02)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fit", get_args(Fit))
def test_each_mode_resizes_as_pillow_does_by_the_encoders_interpolation(fit: str, interpolation: str) -> None:
    """``expand2square`` of LLaVA, and CLIP's shortest side and center crop, written with Pillow."""
    processor = make_image_processor(dataclasses.replace(PIXELS, interpolation=interpolation), fit)
    resample = getattr(Image.Resampling, interpolation.upper())
    for picture in bridge_world.noise((32, 16), (16, 40), (20, 20), (6, 4)):
        whole, (width, height) = picture, picture.size
        if fit == "pad":
            whole = Image.new("RGB", (max(picture.size),) * 2, MEAN)
            whole.paste(picture, ((whole.width - width) // 2, (whole.height - height) // 2))
        scale = 8 / min(width, height)
        whole = whole.resize((int(width * scale), int(height * scale)) if fit == "crop" else (8, 8), resample)
        left, top = (whole.width - 8) // 2, (whole.height - 8) // 2
        wanted = np.asarray(whole.crop((left, top, left + 8, top + 8)), dtype=np.float32) / 255
        assert np.abs(shown(processor, picture).permute(1, 2, 0).numpy() - wanted).max() < 0.01


def test_squash_fills_the_square_and_crop_cuts_the_sides_off() -> None:
    picture = halves(32, 16)
    squashed, cropped = (shown(make_image_processor(PIXELS, fit), picture) for fit in ("squash", "crop"))
    for pixels in (squashed, cropped):
        assert torch.allclose(pixels[:, :, :3], torch.ones(()), atol=0.03)
        assert torch.allclose(pixels[:, :, 5:], torch.zeros(()), atol=0.03)
    marked = picture.copy()
    marked.paste((255, 0, 0), (0, 0, 6, 16))  # within what is cut off
    assert torch.allclose(shown(make_image_processor(PIXELS, "crop"), marked), cropped, atol=1e-3)
    assert not torch.allclose(shown(make_image_processor(PIXELS, "squash"), marked), squashed, atol=0.1)


@pytest.mark.parametrize("fit", get_args(Fit))
def test_a_saved_llava_prepares_images_as_in_training(fit, bridge_encoder, bridge_llm, tmp_path):
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm), image_aspect_ratio=fit))
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    picture = halves(48, 20)
    wanted = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    assert wanted.shape == (1, 3, 32, 32)
    assert torch.equal(again.image_processor([picture], return_tensors="pt")["pixel_values"], wanted)
    whole = again(images=[picture], text="<image>\nWhat?", return_tensors="pt")  # transformers' own way to ask
    assert torch.equal(whole["pixel_values"], wanted)
    assert int((whole["input_ids"] == model.config.image_token_index).sum()) == model.config.image_seq_length
    for other in get_args(Fit):
        made = with_aspect_ratio(again.image_processor, other)([picture], return_tensors="pt")["pixel_values"]
        assert torch.equal(made, wanted) == (other == fit)


def test_results_state_the_image_aspect_ratio() -> None:
    from benchmarks.tasks.mllm.llava_input import describe_resize

    said = {fit: describe_resize(make_image_processor(PIXELS, fit)) for fit in get_args(Fit)}
    assert said == {"squash": "squash", "pad": "pad", "crop": "shortest side, center crop"}
