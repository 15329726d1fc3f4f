"""``llava-bridge describe``: a line for each image, next to other files and after any number of interruptions."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from bridge_world import run_cli
from PIL import Image

from clips.core.chat_client import ChatClient
from clips.errors import UserError
from llava_bridge.image_paths import find_images, open_image_or_member
from llava_bridge.inference import generate
from llava_bridge.inference.describe_command import DescribeConfig, run_describe


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images, two of them below, one broken, one empty; and what is no image."""
    folder = tmp_path / "photos"
    (folder / "more" / ".cache").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.jpg", "more/c.JPG", "more/d [1].webp", "e.png"]):
        Image.new("RGB", (40, 24), ("red", "green", "blue", "yellow", "white")[number]).save(folder / name)
    shutil.copy(folder / "a.jpg", folder / "more" / ".cache" / "a.jpg")
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:-35])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("mine")
    return folder


GOOD = ["a.jpg", "b.png", "e.png", "more/c.JPG", "more/d [1].webp"]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_files_folders_shards_and_globs(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("e.png", "a.jpg", "notes.txt"):
            tar.add(photos / name, name)
    all_of_them = sorted([*GOOD, "broken.png", "empty.jpg"])
    assert find_images([str(photos)]) == [f"{photos}/{name}" for name in all_of_them]
    assert find_images([f"{photos}/*.jpg"]) == [f"{photos}/a.jpg", f"{photos}/empty.jpg"]
    assert find_images([f"{photos}/**/*.JPG", f"{photos}/more"]) == [
        f"{photos}/more/c.JPG",
        f"{photos}/more/d [1].webp",
    ]
    assert find_images([f"{photos}/more/d [1].webp"] * 2) == [f"{photos}/more/d [1].webp"]
    assert find_images([f"{tmp_path}/s.tar"]) == [f"{tmp_path}/s.tar/a.jpg", f"{tmp_path}/s.tar/e.png"]
    assert find_images([f"{photos}/notes.txt"]) == [f"{photos}/notes.txt"]  # who names a file means it
    assert open_image_or_member(f"{tmp_path}/s.tar/e.png").getpixel((0, 0)) == (255, 255, 255)
    (tmp_path / "nothing").mkdir()
    for word, what in (("nothing", "no images in it"), ("none.png", "no such file"), ("*.gif", "no such file")):
        with pytest.raises(UserError, match=f"^images: .*{what}; expected images, directories"):
            find_images([f"{tmp_path}/{word}"])


def test_every_image_has_its_own_answer(bridge_llava: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = spied(monkeypatch)
    settings = ("--prompt", "What color?", "--batch_size", "2", "--max_new_tokens", "5")
    status, out, told = run_cli("describe", str(bridge_llava), str(photos), *settings)
    assert status == 0
    loaded = generate.load_llava(bridge_llava)
    alone = [
        generate.answer(*loaded, [open_image_or_member(f"{photos}/{name}")], ["What color?"], max_new_tokens=5)[0]
        for name in GOOD
    ]
    assert lines(out) == [{"image": f"{photos}/{name}", "text": text} for name, text in zip(GOOD, alone, strict=True)]
    assert sizes[:3] == [2, 2, 1]  # what cannot be read leaves no gaps
    assert f"invalid     1 × truncated image ({photos}/broken.png)" in told
    assert f"invalid     1 × undecodable image ({photos}/empty.jpg)" in told


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that are asked from now on."""
    sizes: list[int] = []
    real = generate.answer

    def answer(model: Any, processor: Any, images: Any, prompts: Any, **settings: Any) -> list[str]:
        sizes.append(len(images))
        if len(sizes) == 2 and settings.get("max_new_tokens") == 3:
            raise KeyboardInterrupt
        return real(model, processor, images, prompts, **settings)

    monkeypatch.setattr(generate, "answer", answer)
    return sizes


def test_the_same_command_resumes(bridge_llava, photos, tmp_path, capsys, monkeypatch):
    output = tmp_path / "new" / "out.jsonl"
    config = DescribeConfig(
        model=str(bridge_llava), images=[str(photos)], output=str(output), batch_size=2, max_new_tokens=3
    )
    sizes = spied(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_describe(config)
    assert [Path(line["image"]).name for line in lines(output.read_text())] == ["a.jpg", "b.png"]
    with output.open("a") as stream:
        stream.write('{"image": "half a l')
    run_describe(config)
    assert [line["image"] for line in lines(output.read_text())] == [f"{photos}/{name}" for name in GOOD]
    assert sizes == [2, 2, 2, 1]
    assert "2 of 7 images are described already" in capsys.readouterr().err
    before = output.read_bytes()
    run_describe(config)  # tries the unusable ones once more
    assert output.read_bytes() == before
    assert f"{output}: 5 of 7 images described" in capsys.readouterr().err


def test_answers_of_another_prompt_or_model_are_not_mixed(bridge_llava: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    settings = {"images": [str(photos / "a.jpg")], "output": str(output), "max_new_tokens": 2}
    run_describe(DescribeConfig(model=str(bridge_llava), **settings))
    before = output.read_bytes()
    with pytest.raises(UserError, match=r"^output: .* holds another run: prompt is 'Describe this picture.' there"):
        run_describe(DescribeConfig(model=str(bridge_llava), **settings, prompt="Why?"))
    other = tmp_path / "other"
    shutil.copytree(bridge_llava, other)
    (other / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds another run: inputs\.model is"):
        run_describe(DescribeConfig(model=str(other), **settings))
    assert output.read_bytes() == before
    (tmp_path / "out.jsonl.run.json").unlink()
    with pytest.raises(UserError, match=r"out\.jsonl exists and is not"):
        run_describe(DescribeConfig(model=str(bridge_llava), **settings))
    assert output.read_bytes() == before


def test_the_command_fails_only_if_all_images_fail(bridge_llava: Path, photos: Path) -> None:
    (photos / "worse.png").write_bytes(b"no picture")
    status, out, told = run_cli("describe", str(bridge_llava), f"{photos}/worse.png", f"{photos}/empty.jpg")
    assert (status, out) == (2, "")
    assert told.splitlines() == [
        f"invalid     2 × undecodable image ({photos}/worse.png, {photos}/empty.jpg)",
        "llava-bridge: images: none of the 2 images can be read",
    ]


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 0), ("max_new_tokens", 0), ("images", []), ("prompt", " ")]
)
def test_settings_are_checked(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^{field}: expected"):
        DescribeConfig(**{"model": "d", "images": ["a"], field: value})  # type: ignore[arg-type]


def test_servers_answer_in_order_and_what_they_reject_is_counted(bridge_llava, photos, tmp_path, capsys, monkeypatch):
    pytest.importorskip("uvicorn")
    from serving import serve_app

    from llava_bridge.inference import describe_command
    from llava_bridge.serving.app import Server
    from llava_bridge.serving.worker import GenerationWorker

    server = Server(GenerationWorker(*generate.load_llava(bridge_llava)), "tiny", max_new_tokens=9)
    real, listed = describe_command.image_request, ChatClient.models

    def request(model: str, images: list[Image.Image], text: str, **settings: Any) -> dict[str, Any]:
        made = real(model, images, text, **settings)
        if images[0].getpixel((0, 0)) == (255, 255, 255):  # e.png
            made["messages"][0]["content"][0]["image_url"]["url"] = "data:image/jpeg;base64,AAAA"
        return made

    monkeypatch.setattr(describe_command, "image_request", request)
    for address in serve_app(server.app(["127.0.0.1"])):
        config = DescribeConfig(
            model="tiny",
            images=[str(photos)],
            output=str(tmp_path / "out.jsonl"),
            endpoint=("http://127.0.0.1:9/v1", f"{address}/v1"),
            batch_size=2,
            max_new_tokens=5,
        )
        run_describe(config)
        prices = dataclasses.replace(config, output=str(tmp_path / "no"), estimate=3, token_prices=(1e6, 2e6))
        run_describe(prices)
        with monkeypatch.context() as changed:
            changed.setattr(ChatClient, "models", lambda self: [{**each, "root": "new"} for each in listed(self)])
            with pytest.raises(UserError, match=r"tiny of a server \(new\)"):
                run_describe(config)
        with pytest.raises(UserError, match=r"^model: http://.* has no 'small'; expected tiny$"):
            run_describe(dataclasses.replace(config, model="small", output=None))
    printed = capsys.readouterr().err
    assert "4 of 7 images described" in printed
    assert "answers 400" in printed
    assert "estimate for all 7, from 3: 0.00 h in one process\n" in printed
    assert "expected an estimate from 4 or more (2 × batch_size)" in printed
    prompts, generated = (int(words.split()[0]) for words in printed.partition("tokens: ")[2].split(", ")[:2])
    assert prompts > generated > 3
    assert float(printed.partition("cost: ")[2].split()[0]) == pytest.approx(prompts + 2 * generated, abs=2)
    assert not (tmp_path / "no").exists()
    found = lines((tmp_path / "out.jsonl").read_text())
    assert [line["image"] for line in found] == [f"{photos}/{name}" for name in GOOD if name != "e.png"]
    assert len({line["text"] for line in found}) > 1
    with pytest.raises(UserError, match=r"^endpoint: http://127\.0\.0\.1:9/v1 cannot be reached \(connect\)$"):
        run_describe(dataclasses.replace(config, endpoint=("http://127.0.0.1:9/v1",), output=None, retry_minutes=0))
