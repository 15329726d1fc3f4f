"""Random image files: training, chat, serve and benchmarks see the same pixels, those that a viewer shows on white."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from bridge_world import make_llava
from generators import explore, sizes
from hypothesis import strategies as st
from image_files import DrawnFile, image_files
from PIL import Image

from benchmarks.tasks.mllm.task_images import decode_as_in_training
from clips.data.formats import DatasetSpec, read_dataset
from clips.data.images import InvalidImageError, decode_image, to_rgb
from clips.data.lazy_images import open_image
from clips.errors import UserError
from clips.loader.augment import augment, read_crop
from clips.loader.data_config import AugmentConfig
from llava_bridge.inference import generate
from llava_bridge.inference.serve_command import ChatMessage, ContentPart, ImageUrl, make_app, read_messages

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
SIDE = 32  # more than half of every drawn image's sides, so that no JPEG is decoded at a fraction of its size
_NO_AUGMENTATION = AugmentConfig(crop_scale_min=1.0, horizontal_flip=False)


def chat(folder: Path, content: bytes) -> Image.Image:
    (folder / "image").write_bytes(content)
    return open_image(folder, "image")


def training(folder: Path, content: bytes) -> Image.Image:
    """Of a LLaVA: the image of a conversation."""
    (folder / "image").write_bytes(content)
    row = {"image": "image", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]}
    (folder / "rows.json").write_text(json.dumps([row]))
    (sample,) = read_dataset(
        DatasetSpec(path=str(folder / "rows.json"), image_root=str(folder)), "conversations"
    ).records
    return sample.images[0].open()


def serve(folder: Path, content: bytes) -> Image.Image:
    url = ImageUrl(url="data:image/any;base64," + base64.b64encode(content).decode())
    return read_messages((ChatMessage(role="user", content=(ContentPart(type="image_url", image_url=url),)),))[1][0]


def lmms_eval(folder: Path, content: bytes) -> Image.Image:
    """Of a task's dataset."""
    rows = {"image": [{"bytes": content, "path": None}], "images": [[{"bytes": content, "path": None}]]}
    kinds = {"image": datasets.Image(), "images": datasets.List(datasets.Image())}
    found = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    task = SimpleNamespace(dataset={"test": found}, dataset_no_image={"test": found})
    decode_as_in_training(task)
    row = found.select([0])[0]
    assert (np.asarray(row["image"]) == np.asarray(row["images"][0])).all()
    return row["image"].convert("RGB")  # as its tasks do


def opened_by_pillow(folder: Path, content: bytes) -> Image.Image:
    """What a user gives to ``answer``."""
    opened = Image.open(io.BytesIO(content))
    (image,), (again,) = generate.rgb_images([opened, [opened]])
    assert image is again  # prompts about one image share its computation
    return image


WAYS: dict[str, Callable[[Path, bytes], Image.Image]] = {
    each.__name__: each for each in (chat, training, serve, lmms_eval, opened_by_pillow)
}


@sizes
def test_all_ways_show_what_a_viewer_shows(examples: int, tmp_path: Path) -> None:
    def check(data: st.DataObject) -> None:
        file: DrawnFile = data.draw(image_files())
        if file.shown is None:
            for name, way in WAYS.items():
                with pytest.raises((UserError, InvalidImageError), match="not an 8-bit image"):
                    raise AssertionError(f"{file.about}: {name} shows {np.asarray(way(tmp_path, file.content))}")
            with pytest.raises(InvalidImageError):
                read_crop(file.content, SIDE, _NO_AUGMENTATION, np.random.default_rng(0))
            return
        first = decode_image(file.content)
        assert first.mode == "RGB"
        assert np.shape(first) == file.shown.shape, file.about
        assert np.abs(np.asarray(first) - file.shown).max() <= 1, file.about  # rounding of partly transparent pixels
        for name, way in WAYS.items():
            shown = way(tmp_path, file.content)
            assert np.array_equal(np.asarray(shown), np.asarray(first)), (name, file.about)
            assert to_rgb(shown) is shown, (name, file.about)  # nothing turns it again
        crop = read_crop(file.content, SIDE, _NO_AUGMENTATION, np.random.default_rng(0))
        same = augment(first, SIDE, _NO_AUGMENTATION, np.random.default_rng(0))
        # simplejpeg and Pillow round differently
        assert (crop.float() - same.float()).abs().max() <= (2 if first.format == "JPEG" else 0), file.about

    explore(check, examples)


@pytest.fixture(scope="module")
def llava(bridge_encoder: Path, bridge_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("shown") / "tiny", bridge_encoder, bridge_llm)


@pytest.fixture(scope="module")
def http(llava: Path) -> Iterator[Any]:
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    with TestClient(make_app(str(llava)), "http://localhost") as client:
        yield client


def test_the_server_and_a_benchmark_encoder_answer_the_pixels_of_a_viewer(
    http: Any, llava: Path, bridge_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clips.encoder import load_encoder

    model, processor = generate.load_llava(llava)
    encoder, seen = load_encoder(bridge_encoder), []
    monkeypatch.setattr(generate, "preprocess_images", lambda images, *_: seen.append(images) or {})

    async def nothing(*_: Any, **__: Any) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse({})

    monkeypatch.setattr("transformers.cli.serving.chat_completion.ChatCompletionHandler._non_streaming", nothing)

    def check(data: st.DataObject) -> None:
        file: DrawnFile = data.draw(image_files().filter(lambda file: file.shown is not None))
        first = decode_image(file.content)
        parts = [{"type": "image_url", "image_url": {"url": f"data:;base64,{base64.b64encode(file.content).decode()}"}}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        ((shown,),) = seen
        seen.clear()
        assert np.array_equal(np.asarray(shown), np.asarray(first))
        pixels = processor.image_processor([shown], return_tensors="pt")["pixel_values"]
        assert pixels.isfinite().all()
        opened = encoder.preprocess(Image.open(io.BytesIO(file.content)))
        assert (opened == encoder.preprocess(first)).all(), file.about

    assert model.training is False
    explore(check, 30)
