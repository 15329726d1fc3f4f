"""Decoding and augmenting images of training data."""

from __future__ import annotations

import colorsys
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clips_world
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from clips.data import InvalidImageError, decode_image
from clips.data.images import read_header, upright_size
from clips.data.tar_index import index_tar
from clips.loader import augment as augmenting
from clips.loader.augment import augment, jitter_colors, read_crop
from clips.loader.data_config import AugmentConfig


def encode(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_images_of_all_modes_become_upright_rgb():
    half = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    assert decode_image(encode(half)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encode(Image.new("CMYK", (8, 4)), "jpeg")).mode == "RGB"
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = 0
    assert decode_image(encode(palette, transparency=0)).getpixel((1, 1)) == (255, 255, 255)
    for mode, hidden, shown in (("RGB", (0, 0, 0), (9, 9, 9)), ("L", 0, 9)):  # a color whose pixels are transparent
        two = Image.new(mode, (2, 1), shown)
        two.putpixel((0, 0), hidden)
        read = decode_image(encode(two, transparency=hidden))
        assert [read.getpixel((column, 0)) for column in (0, 1)] == [(255, 255, 255), (9, 9, 9)]
    rotated = Image.new("RGB", (8, 4))
    exif = rotated.getexif()
    exif[0x0112] = 6
    assert decode_image(encode(rotated, "jpeg", exif=exif)).size == (4, 8)
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert decode_image(encode(frames[0], "gif", save_all=True, append_images=frames[1:])).getpixel((0, 0))[0] > 200


def test_jpegs_are_decoded_at_a_fraction_but_never_too_small():
    content = encode(Image.new("RGB", (800, 640)), "jpeg")
    assert [decode_image(content, at_least=size).size for size in (None, 100)] == [(800, 640), (200, 160)]


def test_unusable_images_give_a_reason(monkeypatch: pytest.MonkeyPatch):
    good = clips_world.draw_image(1)
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval leaves it in its process
    for content, reason in ((b"", "undecodable"), (b"GIF89a", "undecodable"), (good[: len(good) // 2], "truncated")):
        with pytest.raises(InvalidImageError, match=reason):
            decode_image(content)
    with pytest.raises(InvalidImageError, match="8-bit"):
        decode_image(encode(Image.new("I;16", (4, 4))))
    monkeypatch.setattr("clips.data.images.MAX_PIXELS", 40 * 32)
    assert decode_image(good).size == (40, 32)
    monkeypatch.setattr("clips.data.images.MAX_PIXELS", 40 * 32 - 1)
    with pytest.raises(InvalidImageError, match="too large"):
        decode_image(good)


def test_threads_reject_truncated_images_and_change_no_setting_of_the_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    whole = encode(Image.effect_noise((200, 200), 90).convert("RGB"))
    contents = [whole, whole[: len(whole) // 2]] * 50

    def is_decoded(content: bytes) -> bool:
        try:
            return decode_image(content).size == (200, 200)
        except InvalidImageError:
            return False

    filters = [*warnings.filters]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(is_decoded, contents)) == [True, False] * 50
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # as before
    assert warnings.filters == filters


def ramps(width: int, height: int, **options: object) -> bytes:
    """A JPEG whose red tells the column, and green the row."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([red, green, np.full_like(red, 128)], axis=-1)
    return encode(Image.fromarray(pixels.round().astype(np.uint8)), "jpeg", quality=98, **options)


def test_a_crop_is_decoded_at_no_smaller_size_than_it_needs(monkeypatch: pytest.MonkeyPatch):
    decoded, load = [], augmenting.load_rgb
    monkeypatch.setattr(augmenting, "load_jpeg", lambda *_: None)
    monkeypatch.setattr(augmenting, "load_rgb", lambda *given: decoded.append(load(*given)) or decoded[-1])
    content, config = ramps(640, 440), AugmentConfig(crop_scale_min=0.2)
    for seed in range(40):
        left, top, right, bottom = augmenting.random_box(640, 440, 0.2, np.random.default_rng(seed))
        read_crop(content, 96, config, np.random.default_rng(seed))
        factor = 640 / decoded[-1].width
        assert min(right - left, bottom - top) / factor >= 96
        assert min(right - left, bottom - top) / factor < 192 or factor == 8
    assert len({image.size for image in decoded}) > 1


@pytest.mark.parametrize(("kind", "sizes"), [("jpeg", {2, 4}), ("png", {1})])
def test_a_cached_image_has_the_same_crops(kind: str, sizes: set[int], monkeypatch: pytest.MonkeyPatch):
    content, config, kept = ramps(420, 400), AugmentConfig(crop_scale_min=0.05, horizontal_flip=True), {}
    if kind == "png":
        content = encode(decode_image(content))
    alone = [read_crop(content, 50, config, np.random.default_rng(seed)) for seed in range(30)]
    crops = [read_crop(content, 50, config, np.random.default_rng(seed), kept) for seed in range(30)]
    assert all(torch.equal(one, other) for one, other in zip(alone, crops, strict=True))
    assert kept.keys() == sizes
    monkeypatch.setattr(augmenting, "load_rgb", None)  # nothing is decoded again
    monkeypatch.setattr(augmenting, "load_jpeg", None)
    assert torch.equal(read_crop(content, 50, config, np.random.default_rng(7), kept), alone[7])


@pytest.mark.parametrize("turn", [1, 6])
def test_a_crop_is_the_same_from_a_smaller_decoded_image(turn: int):
    exif = Image.new("RGB", (1, 1)).getexif()
    exif[0x0112] = turn
    content, config = ramps(900, 600, exif=exif), AugmentConfig(horizontal_flip=True)
    for seed in range(8):
        whole = augment(decode_image(content), 64, config, np.random.default_rng(seed)).float()
        crop = read_crop(content, 64, config, np.random.default_rng(seed))
        assert crop.shape == (3, 64, 64)
        assert crop.permute(1, 2, 0).is_contiguous()
        assert (crop.float() - whole).abs().max() < 255 / 225 * 1.5 + 2  # the box is rounded to a pixel of 1/4 of it


def crop_or_reason(content: bytes, size: int) -> torch.Tensor | str:
    try:
        return read_crop(content, size, AugmentConfig(), np.random.default_rng(size))
    except InvalidImageError as error:
        return str(error)


def test_simplejpeg_decodes_the_same_pixels(shared: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("simplejpeg", reason="the optional decoder is not installed")
    index = index_tar(shared / "data" / "cc12m_32.tar")
    contents = [index.read(name) for name in index.members if name.endswith(".jpg")]
    contents += [contents[0][:9000], contents[0][:700] + bytes(99) + contents[0][799:], contents[0][:300]]
    for size in (224, 84, 24):
        fast = [crop_or_reason(content, size) for content in contents]
        with monkeypatch.context() as without:
            without.setattr("clips.data.images.fast_decoder", lambda: None)
            slow = [crop_or_reason(content, size) for content in contents]
        for one, other in zip(fast, slow, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert {"truncated image"} <= {one for one in fast if isinstance(one, str)}


def test_crops_keep_to_their_area_and_squash_to_the_square():
    ramp = Image.fromarray(np.tile(np.arange(0, 200, dtype=np.uint8)[None, :, None], (100, 1, 3)))
    widths = []
    for seed in range(200):
        crop = augment(ramp, 16, AugmentConfig(crop_scale_min=0.4), np.random.default_rng(seed))
        assert crop.shape == (3, 16, 16)
        assert crop.dtype == torch.uint8
        row = crop[0, 0].float()
        widths.append(float(row[-1] - row[0]) * 16 / 15)
    assert min(widths) > 200 * 0.4 * 0.85  # the narrowest: 40 % of the area at aspect 3/4
    assert max(widths) < 200
    assert np.std(widths) > 5
    whole = augment(ramp, 16, AugmentConfig(crop_scale_min=1), np.random.default_rng(0))
    assert torch.equal(whole, augment(ramp, 16, AugmentConfig(crop_scale_min=1), np.random.default_rng(1)))


@pytest.mark.parametrize("size", [(3000, 3000), (4000, 3000), (3000, 4000)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]):
    width, height = size
    blank = torch.empty(1).expand(1, height, width)
    torch.manual_seed(0)
    rng, ours, theirs = np.random.default_rng(0), [], []
    for _ in range(3000):
        left, top, right, bottom = augmenting.random_box(width, height, 0.4, rng)
        ours.append((left, top, right - left, bottom - top))
        y, x, h, w = RandomResizedCrop.get_params(blank, [0.4, 1.0], [3 / 4, 4 / 3])
        theirs.append((x, y, w, h))
    for one, other in zip(described(ours), described(theirs), strict=True):
        assert ks_2samp(one, other).statistic < 0.05


def described(boxes: list[tuple[float, ...]]) -> list[np.ndarray]:
    """Place, size, aspect ratio and area of boxes."""
    left, top, width, height = np.array(boxes, dtype=float).T
    return [left, top, width, height, width / height, width * height]


def test_a_crop_is_resized_as_pillow_resizes_it():
    noise = Image.effect_noise((160, 120), 90).convert("RGB")
    for image in (noise, noise.resize((12, 9))):  # to a smaller and to a larger size
        crop = augment(image, 24, AugmentConfig(crop_scale_min=1), np.random.default_rng(0))
        expected = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR), dtype=int)
        assert np.abs(crop.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_half_of_the_images_are_mirrored_left_to_right():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4] = 200  # the upper left quarter
    config = AugmentConfig(crop_scale_min=1, horizontal_flip=True)
    crops = [augment(Image.fromarray(pixels), 8, config, np.random.default_rng(seed)) for seed in range(60)]
    assert all((crop[:, 4:] == 0).all() and (crop[:, :4].sum(dim=(0, 1)) > 0).sum() == 4 for crop in crops)
    assert 15 < sum(int(crop[0, 0, 0] == 0) for crop in crops) < 45


def test_colors_change_only_when_asked():
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    draws = [
        augment(image, 8, AugmentConfig(color_jitter=0.4, gray_scale_prob=0.2), np.random.default_rng(s))
        for s in range(99)
    ]
    grey = sum(bool((draw[0] == draw[1]).all() and (draw[1] == draw[2]).all()) for draw in draws)
    same = sum(draw[:, 0, 0].tolist() == [200, 100, 50] for draw in draws)
    assert 8 <= grey <= 35
    assert 5 <= same <= 35
    assert augment(image, 8, AugmentConfig(), np.random.default_rng(7))[:, 0, 0].tolist() == [200, 100, 50]


def authors_jitter(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """SimCLR's color_jitter with random order, as the authors call it, in float64 and with these random numbers."""
    x = pixels / 255
    for number in rng.permutation(4):
        shift = rng.uniform(-1, 1)
        factor = 1 + 0.8 * strength * shift
        if number == 0:  # random_brightness, simclrv2
            x = x * factor
        elif number == 1:  # tf.image.adjust_contrast: each channel by itself
            x = (x - x.mean(axis=(0, 1))) * factor + x.mean(axis=(0, 1))
        else:  # tf.image.adjust_saturation and adjust_hue
            hsv = np.array([[colorsys.rgb_to_hsv(*pixel) for pixel in row] for row in x])
            if number == 2:
                hsv[..., 1] = (hsv[..., 1] * factor).clip(0, 1)
            else:
                hsv[..., 0] = (hsv[..., 0] + 0.2 * strength * shift) % 1
            x = np.array([[colorsys.hsv_to_rgb(*pixel) for pixel in row] for row in hsv])
        x = x.clip(0, 1)
    return 255 * x


def test_colors_jitter_as_the_authors_do():
    smooth = np.random.default_rng(0).integers(30, 230, (3, 3, 3)).astype(np.uint8)
    image = Image.fromarray(smooth).resize((12, 12), Image.Resampling.BICUBIC)
    moved = []
    for seed in range(200):
        found = np.asarray(jitter_colors(image, 0.4, np.random.default_rng(seed)), dtype=float)
        expected = authors_jitter(np.asarray(image, dtype=float), 0.4, np.random.default_rng(seed))
        assert np.abs(found - expected).mean() < 2.5, seed  # of 255: the rounding of hues to 8 bits
        moved.append(np.abs(expected - np.asarray(image, dtype=float)).mean())
    assert np.mean(moved) > 20


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_the_decoded_image(file_format: str, orientation: int):
    image, stream, exif = Image.new("RGB", (90, 200)), io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, file_format, exif=exif)
    content = stream.getvalue()
    assert upright_size(read_header(content)) == decode_image(content).size
