"""Other contents under the same name are another run: for each format, what a training reads is compared.

The reference is a training of the changed data in a directory of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clips_world
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clips.core.artifact import read_manifest
from clips.data.sources import open_source
from clips.errors import UserError
from clips.recaption.recaption_config import RecaptionConfig
from clips.recaption.run import run_identity
from clips.training.setup import hub_commits

COUNT = 12


def captions(shift: int) -> list[str]:
    """Of equal lengths."""
    return [f"{clips_world.COLORS[(number + shift) % 7]:>6} thing {number:03d}" for number in range(COUNT)]


def write_shard(folder: Path, shift: int, first: int) -> Path:
    samples = {
        f"{number:04d}": {
            "png": clips_world.draw_image(first + number),
            "json": json.dumps({"web_caption": caption}).encode(),
        }
        for number, caption in enumerate(captions(shift))
    }
    clips_world.write_shard(folder / "s-00000.tar", samples)
    return folder


def write_parquet(folder: Path, shift: int, first: int, name: str = "t.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": clips_world.draw_image(first + number), "path": f"{number}.png"} for number in range(COUNT)]
    pq.write_table(pa.table({"image": images, "caption": captions(shift)}), folder / name)
    return folder / name


def write_hub(folder: Path, shift: int, first: int) -> Path:
    """Two files, of which the card says which one is the training split."""
    write_parquet(folder / "data", 0, 0, "a.parquet")
    write_parquet(folder / "data", 1, 30, "b.parquet")
    names = ["train", "test"] if shift == first == 0 else ["test", "train"]
    files = [{"split": name, "path": f"data/{file}.parquet"} for name, file in zip(names, "ab", strict=True)]
    card = {"configs": [{"config_name": "default", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    return folder


FORMS: dict[str, tuple[Callable[[Path, int, int], Path], dict[str, Any]]] = {
    "shards": (write_shard, {"web_caption": "web_caption"}),
    "parquet": (write_parquet, {"format": "table", "web_caption": "caption"}),
    "streamed parquet": (write_parquet, {"format": "table", "web_caption": "caption", "streaming": True}),
    "card of the Hub": (write_hub, {"format": "datasets", "web_caption": "caption", "split": "train"}),
}


@pytest.mark.parametrize("change", [(3, 0), (0, 40), (0, 0)], ids=["captions", "images", "nothing"])
@pytest.mark.parametrize("form", FORMS)
def test_data_with_another_content_are_another_run(form: str, change: tuple[int, int], tmp_path: Path) -> None:
    write, fields = FORMS[form]

    def run(name: str) -> str:
        source = {"path": str(path), "synthetic_caption": None, "cache_dir": str(tmp_path / f"cache {name}"), **fields}
        data = {"sources": [source], **({"shuffle_buffer_shards": 4} if "streaming" in fields else {})}
        clips_world.trained(path, tmp_path / name, max_steps=1, save_steps=100, recipe={"name": "clip"}, data=data)
        return str(read_manifest(tmp_path / name)["hash"])

    path = write(tmp_path / "data", 0, 0)
    before = run("run")
    write(tmp_path / "data", *change)
    if change == (0, 0):
        assert run("run") == before
        return
    with pytest.raises(UserError, match=r"run holds another run: inputs\.data\.sources\[0\]"):
        run("run")
    assert run("fresh") != before


@pytest.mark.parametrize("change", [(3, 0), (0, 40)], ids=["captions", "images"])
@pytest.mark.parametrize("form", ["shards", "parquet", "streamed parquet"])
def test_other_data_to_recaption_are_another_run(form: str, change: tuple[int, int], tmp_path: Path) -> None:
    write, fields = FORMS[form]
    path = write(tmp_path / "data", 0, 0)
    settings: dict[str, Any] = {"output": "o", "model": "m", "prompt": "p", "synthetic_caption": None}

    def values() -> dict[str, Any]:
        config = RecaptionConfig(path=str(path), cache_dir=str(tmp_path / "cache"), **settings, **fields)
        return dict(run_identity(config, open_source(config)).values)

    before = values()
    assert values() == before
    write(tmp_path / "data", *change)
    assert {name for name, value in values().items() if value != before[name]} & {"inputs.source", "inputs.content"}


def test_weights_on_the_hub_count_by_their_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clips.training.setup.download_from_hub", lambda name, field: Path("snapshots") / f"{name} 1")
    config = clips_world.train_config(tmp_path, tmp_path / "x", model={"pretrained": "hf-hub:o/enc"})
    assert hub_commits(config) == {"pretrained": "enc 1"}
    assert hub_commits(clips_world.train_config(tmp_path, tmp_path / "x")) == {}


def test_an_architecture_directory_with_other_files_is_another_run(tmp_path: Path) -> None:
    data = write_shard(tmp_path / "data", 0, 0)
    source = {"sources": [{"path": str(data), "synthetic_caption": None}]}
    fields: dict[str, Any] = {"max_steps": 1, "recipe": {"name": "clip"}, "data": source}
    base = clips_world.trained(data, tmp_path / "base", **fields)
    shutil.copytree(base, tmp_path / "architecture")
    model = {"architecture": str(tmp_path / "architecture"), "image_size": 16, "context_length": 12}
    clips_world.trained(data, tmp_path / "run", **fields, model=model)
    config = json.loads((tmp_path / "architecture/open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.9, 0.1]
    (tmp_path / "architecture/open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"run holds another run: inputs\.architecture"):
        clips_world.trained(data, tmp_path / "run", **fields, model=model)
