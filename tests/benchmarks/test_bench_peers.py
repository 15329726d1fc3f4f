"""What peers do with an encoder directory: mteb by ``MtebEncoder``, CLIP_benchmark by its own command line."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bench_classes as classes
import bench_world as world
import pytest
import torch
import yaml
from PIL import Image

from benchmarks.tasks.registry import configure
from clips.encoder import write_encoder
from clips.method.clips_model import ModelConfig, build_model
from clips.method.recipes import RecipeConfig


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("encoder")
    model = build_model(ModelConfig(context_length=12, image_size=32), RecipeConfig(name="clip"), seed=3)
    with torch.no_grad():
        for value in model.clip.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    write_encoder(model, directory)
    return str(directory)


def write_hub_dataset(folder: Path, splits: dict[str, dict[str, list[Any]]]) -> None:
    """A dataset in the Hub's structure: ``config/split`` → columns."""
    import datasets

    files: dict[str, list[dict[str, str]]] = {}
    for place, columns in splits.items():
        config, split = place.split("/")
        table = datasets.Dataset.from_dict(columns)
        for column, values in columns.items():
            if isinstance(values[0], Image.Image):
                table = table.cast_column(column, datasets.Image())
        (folder / config).mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        files.setdefault(config, []).append({"split": split, "path": f"{config}/{split}-*"})
    configs = [{"config_name": config, "data_files": data_files} for config, data_files in files.items()]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mteb_gives_a_directory_the_scores_of_its_own_model(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mteb = pytest.importorskip("mteb", reason="the extra mteb is not installed")
    import open_clip
    from mteb.models.model_implementations.openclip_models import openclip_loader

    from benchmarks.tasks.encoders.mteb_encoder import MtebEncoder

    count = 24
    images, texts = (
        [world.draw_image(number) for number in range(count)],
        [f"a {world.color(n)} {n}" for n in range(count)],
    )
    periods = {"train": 1, "test": 2}  # other labels in the test split: right answers are neither all nor none
    write_hub_dataset(
        tmp_path / "mteb/dtd",
        {
            f"default/{split}": {"image": images, "label": [number // period % 2 for number in range(count)]}
            for split, period in periods.items()
        },
    )
    names = {side: [f"{side}{number}" for number in range(count)] for side in "qd"}
    write_hub_dataset(
        tmp_path / "mteb/vqa-2",
        {
            "queries/test": {"id": names["q"], "image": images, "text": texts[::-1]},
            "corpus/test": {"id": names["d"], "text": texts},
            "qrels/test": {"query-id": names["q"], "corpus-id": names["d"], "score": [1] * count},
        },
    )
    for function in ("create_model_and_transforms", "get_tokenizer"):  # a directory instead of a name on the Hub
        load = getattr(open_clip, function)
        given = lambda path, load=load, **more: load(path.replace("hf-hub:", "local-dir:"), **more)  # noqa: E731
        monkeypatch.setattr(open_clip, function, given)
    theirs = openclip_loader(encoder, revision="", device="cpu")
    theirs.mteb_model_meta = mteb.models.ModelMeta.create_empty({"modalities": ["image", "text"]})
    monkeypatch.chdir(tmp_path)  # where the Hub's names are directories
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for task in ("DTD", "VQA2IT2TRetrieval"):
        found = [
            mteb.evaluate(model, mteb.get_task(task), cache=None, co2_tracker=False, show_progress_bar=False)
            for model in (MtebEncoder(encoder, "cpu"), theirs)
        ]
        own, expected = (each.task_results[0].get_score() for each in found)
        assert own == pytest.approx(expected, abs=1e-5)
        assert 0 < own < 1
    meta = MtebEncoder(encoder, "cpu").mteb_model_meta
    assert (meta.name, len(meta.revision)) == (f"local/{Path(encoder).name}", 64)


@pytest.mark.skipif(find_spec("clip_benchmark") is None, reason="the extra verify is not installed")
def test_clip_benchmark_reads_a_directory_as_it_is(encoder: str, tmp_path: Path) -> None:
    data = classes.write_wds(tmp_path / "data", 24)
    command = [
        *("eval", "--model", f"local-dir:{encoder}", "--pretrained", "", "--dataset", "wds/colors", "--no_amp"),
        *("--dataset_root", str(data), "--task", "zeroshot_classification", "--num_workers", "0"),
        *("--output", str(tmp_path / "theirs.json")),
    ]
    code = "from clip_benchmark.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *command], check=True, cwd=tmp_path, capture_output=True)
    theirs = json.loads((tmp_path / "theirs.json").read_text(encoding="utf-8"))["metrics"]
    config = configure(name="classification", data=str(data))
    ours = world.measure(tmp_path / "ours", config, encoder=encoder).metrics
    assert ours["acc1"].value == pytest.approx(theirs["acc1"])
    assert ours["mean_per_class_recall"].value == pytest.approx(theirs["mean_per_class_recall"])
