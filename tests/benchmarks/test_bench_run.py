"""``clips-bench run`` on retrieval and choice: numbers known beforehand, protocols, skipping, failures."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_world as world
import pandas as pd
import pytest
import torch
from bench_reader import Reader
from PIL import Image

from benchmarks.results.results import Result, read_items, read_result, result_path
from benchmarks.tasks import run_benchmarks
from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.registry import configure
from benchmarks.tasks.run_benchmarks import RunConfig
from clips.core.artifact import write_manifest
from clips.core.durable import atomic_write
from clips.data.formats import DatasetSpec
from clips.errors import UserError
from clips.export import ExportConfig
from clips.training.run_dir import CHECKPOINTS_DIR, CONFIG_FILE, TRAIN_STATE_FILE, TrainState, train_state_text

PICTURES = 12


TEXTS = {text: number for number in range(PICTURES) for text in world.captions(number)}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return world.write_shards(tmp_path / "shards", PICTURES)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Make every encoder directory load as a reader that knows each caption's image; returns the directory."""

    def use(**how: Any) -> Path:
        encoder = Reader(PICTURES, texts=TEXTS, **how).use(monkeypatch, tmp_path)
        (encoder / "weights").write_text("1")
        return encoder

    return use


def _run(tmp_path: Path, encoder: Path, data: Path, *, overwrite: bool = False, **settings: Any) -> Result:
    benchmark = configure(**{"name": "retrieval", "data": str(data)} | settings)
    return world.measure(tmp_path / "results", benchmark, encoder=encoder, overwrite=overwrite)


def test_an_oracle_is_right_and_a_blind_spot_costs_what_it_must(tmp_path, shards, use):
    perfect = _run(tmp_path, use(), shards)
    assert {name: metric.value for name, metric in perfect.metrics.items() if "median" not in name} == {
        **{f"{way}_r{k}": 1.0 for way in ("t2i", "i2t") for k in (1, 5, 10)},
        "mean_r1": 1.0,
        "mean_recall": 1.0,
    }
    assert perfect.metrics["t2i_median_rank"].value == 1.0
    assert 0.7 < perfect.metrics["t2i_r1"].ci_low < 1.0  # Wilson over twelve images, no false certainty

    result = _run(tmp_path, use(blind=(3,)), shards, overwrite=True)
    # image 3 has the vector of image 4. I→T: 3 finds 4's captions. T→I: 4's captions find 3 and 4 alike,
    # 3's own are as far from every image and hit one of the twelve by chance.
    assert result.metrics["i2t_r1"].value == pytest.approx(11 / 12)
    assert result.metrics["t2i_r1"].value == pytest.approx((10 + 1 / 2 + 1 / 12) / 12)
    assert (result.metrics["t2i_r1"].n, result.metrics["t2i_r1"].clusters) == (36, 12)
    assert result.metrics["mean_r1"].value == pytest.approx((11 + 10 + 1 / 2 + 1 / 12) / 24)

    items = world.check_formulas(result)
    asked = items[items["direction"] == "t2i"].set_index("question")
    assert asked.loc[world.captions(5)[0], "prediction"] == asked.loc[world.captions(5)[0], "target"]
    pictures = items[items["direction"] == "i2t"]
    assert all(Image.open(io.BytesIO(content)).size == (64, 64) for content in pictures["thumbnail"])
    (wrong,) = pictures[pictures["i2t_r1"] < 1]["prediction"]
    assert wrong in world.captions(4)


def test_a_setting_made_in_python_is_checked_as_that_of_a_command(tmp_path, shards, use):
    """Before: an error of torch."""
    benchmark = dataclasses.replace(configure(name="retrieval", data=str(shards)), limit=-1)
    with pytest.raises(UserError, match=r"^benchmarks\.retrieval: limit: expected an integer of at least 1 .*got -1"):
        world.measure(tmp_path / "results", benchmark, encoder=use())
    assert not (tmp_path / "results").exists()


def test_a_checkpoint_is_exported_by_one_process_while_the_others_wait(tmp_path: Path, monkeypatch):
    checkpoint = tmp_path / "run" / CHECKPOINTS_DIR / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / TRAIN_STATE_FILE).write_text(train_state_text(TrainState(step=2)))
    (checkpoint / CONFIG_FILE).touch()
    made: list[str] = []
    evaluated: list[RunConfig] = []

    def export(config: ExportConfig) -> None:
        made.append(config.output)
        time.sleep(0.2)  # while the others come
        Path(config.output).mkdir()
        (Path(config.output) / "open_clip_config.json").touch()

    monkeypatch.setattr("clips.export.run_export", export)
    monkeypatch.setattr(run_benchmarks, "run_benchmarks", evaluated.append)
    config = run_benchmarks.RunSingleConfig(
        model=str(tmp_path / "run"),
        output=str(tmp_path / "results"),
        benchmarks=[configure(name="retrieval", data="d")],
    )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run_benchmarks.run_encoder, [config] * 4))
    assert [each.encoder for each in evaluated] == made * 4
    assert {each.model_name for each in evaluated} == {"run-step-2"}


def test_protocol_states_data_and_input(tmp_path, shards, use):
    result = _run(tmp_path, use(), shards)
    stated = result.protocol
    assert stated["data_hash"] == load_caption_set(DatasetSpec(path=str(shards))).hash
    assert (stated["images"], stated["captions"], stated["captions_per_image"]) == (12, 36, "3")
    how = [stated[f"input_{name}"] for name in ("resolution", "resize", "interpolation")]
    assert how == [64, "squash", "bilinear"]
    assert (stated["precision"], stated["torch"]) == ("float32", torch.__version__.partition("+")[0])
    assert stated["open_clip_torch"] == version("open_clip_torch")
    fewer = _run(tmp_path, use(), shards, captions_per_image=2)
    assert fewer.fingerprint != result.fingerprint
    assert fewer.protocol["captions"] == 24


def test_a_second_run_skips_until_model_data_or_settings_change(tmp_path, shards, use, capsys):
    from benchmarks.tasks.eval_model import model_hash

    encoder = use()
    write_manifest(encoder, kind="encoder", config={})

    def created() -> int:
        return _run(tmp_path, encoder, shards).path.stat().st_mtime_ns

    first = created()
    assert created() == first
    assert "done already" in capsys.readouterr().err
    time = (encoder / "weights").stat().st_mtime_ns
    atomic_write(encoder / "weights", "2")  # another model, as `rsync --times` and `cp -p` put it there
    os.utime(encoder / "weights", ns=(time, time))
    model_hash.cache_clear()  # a new process would read the directory again
    second = created()
    assert second > first
    world.write_shards(shards, PICTURES - 1)  # other data
    third = created()
    assert third > second
    result_path(tmp_path / "results", "row", "retrieval").with_name("retrieval.items.parquet").unlink()
    fourth = created()
    assert fourth > third  # half a result is none
    path = result_path(tmp_path / "results", "row", "retrieval")
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"execution": {**result["execution"], "device": "cuda"}}))
    of_gpu = path.stat().st_mtime_ns
    assert created() > of_gpu  # there `precision: auto` is another one


def test_failures_do_not_stop_the_others_and_are_named_at_the_end(tmp_path, shards, use, capsys):
    (tmp_path / "empty").mkdir()
    empty = [configure(name=name, task="retrieval", data=str(tmp_path / "empty")) for name in ("one", "two")]
    good = configure(name="retrieval", data=str(shards))
    with pytest.raises(UserError, match=r"^failed: one \(.*an empty directory; .*\), two \(.*formats\)$"):
        world.measure(tmp_path / "results", empty[0], good, empty[1], encoder=use())
    failed, found = (read_result(result_path(tmp_path / "results", "row", name)) for name in ("two", "retrieval"))
    assert (failed.status, failed.metrics, failed.items) == ("failed", {}, None)
    assert "expected captions in tar shards, parquet, JSON, CSV or dir" in failed.failure_reason
    assert found.status == "ok"
    assert "row one: failed\n" in capsys.readouterr().err  # the reason is in the error


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "misspelt"}, "^encoder: misspelt: no such directory; expected an encoder directory"),
        ({"encoder": __file__}, "is a file, expected an encoder directory; `clips import .* --output DIR` makes one"),
        ({"encoder": "timm:resnet18"}, "^encoder: 'timm:resnet18' has no text tower"),
        ({"data": "nowhere"}, r"^benchmarks\.retrieval\.data: nowhere: no such file or directory$"),
        ({"image_root": "nowhere"}, r"^benchmarks\.retrieval\.image_root: nowhere: no such file"),
        ({"output": "a-file"}, "^a-file: is a file; expected a directory"),
    ],
)
def test_a_config_error_is_raised_at_once_and_leaves_no_output(tmp_path, monkeypatch, shards, use, changes, said):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    benchmark = {"name": "retrieval", "data": str(shards)}
    benchmark |= {name: changes.pop(name) for name in ("data", "image_root") if name in changes}
    with pytest.raises(UserError, match=said):
        world.measure(changes.pop("output", "results"), configure(**benchmark), **{"encoder": use(), **changes})
    assert not Path("results").exists()


def test_a_failure_never_replaces_numbers(tmp_path, shards, use, capsys):
    before = _run(tmp_path, use(), shards)
    with pytest.raises(UserError, match=r"^failed: retrieval \(.*not finite for image 'shard-00001.tar/000000005.png'"):
        _run(tmp_path, use(broken=5), shards, overwrite=True)
    assert "the earlier result remains" in capsys.readouterr().err
    after = read_result(before.path)
    assert after == before
    assert len(read_items(after)) == 4 * PICTURES


def test_choice_by_hand(tmp_path, use):
    pairs = world.write_images(tmp_path / "pairs", 4)
    rows = []
    for number in range(4):
        right, other, *_ = world.captions(number)
        pair = {"image": f"{number}.png", "caption": right}
        swapped = world.captions(5)[0]
        rows.append(pair | {"kind": "swap", "negative": swapped})
        rows.append(pair | {"kind": "add", "negative": swapped if number else other})
    file = world.write_lines(pairs / "pairs.jsonl", rows)
    result = _run(tmp_path, use(blind=(2,)), file, name="sugar", task="choice")
    # image 2 looks like 3: both its pairs are ties; image 0's 'add' pair names it twice: a tie
    assert result.metrics["accuracy"].value == pytest.approx((1 + 0.5 + 2 + 2 * 0.5 + 2) / 8)
    assert result.metrics["accuracy_swap"].value == pytest.approx(3.5 / 4)
    assert result.metrics["accuracy_add"].n == 4
    items = read_items(result)
    assert items["thumbnail"].notna().sum() == 4
    assert items.loc[items["category"] == "swap", "score"].tolist() == [1, 1, 0.5, 1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_stock_open_clip_directory(tmp_path, shards):
    """A directory written by open_clip alone is evaluated; an untrained one is near chance."""
    import open_clip
    from safetensors.torch import save_file
    from transformers import BertTokenizer

    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 60, "width": 32, "heads": 2, "layers": 1}
    directory = tmp_path / "stock"
    directory.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *world.COLORS, "a", "square", "number", "there", "is"]
    (directory / "vocab.txt").write_text("\n".join([*words, ".", ",", *map(str, range(20))]))
    BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text | {"hf_tokenizer_name": str(directory)}}
    torch.manual_seed(0)
    model = open_clip.CLIP(**{**config, "vision_cfg": open_clip.CLIPVisionCfg(**vision)})
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    result = _run(tmp_path, directory, shards)
    assert (result.protocol["input_interpolation"], result.protocol["input_resolution"]) == ("bilinear", 32)
    assert result.metrics["t2i_r1"].value < 0.5
    assert len(pd.unique(read_items(result)["prediction"])) > 1
