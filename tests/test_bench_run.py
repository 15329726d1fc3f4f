"""``clips-bench run`` on retrieval and choice: numbers known beforehand, protocols, skipping, failures."""

from __future__ import annotations

import io
import json
from importlib.metadata import version
from pathlib import Path

import bench_world as world
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.results.results import ITEM_COLUMNS, read_items, read_result, result_path
from benchmarks.results.statistics import aggregate
from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.encoders import embedding
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, RunConfig
from clips.data.formats import DatasetSpec
from clips.errors import UserError

PICTURES = 12


class Oracle:
    """Knows which caption belongs to which picture; the pictures in ``blind`` get the vector of their neighbor."""

    def __init__(self, blind: tuple[int, ...] = (), broken: int | None = None) -> None:
        self.visual = self
        self.image_size = 64
        self.preprocess_cfg = {"size": (64, 64), "resize_mode": "squash", "interpolation": "bilinear"}
        self.blind, self.broken = blind, broken
        self.numbers = {world.picture(number).tobytes(): number for number in range(PICTURES)}
        self.texts = {text: number for number in range(PICTURES) for text in world.captions(number)}

    def _vector(self, number: int) -> torch.Tensor:
        return torch.eye(PICTURES + 1)[number]

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        found = []
        for each in pixels:
            number = self.numbers[each.byte().numpy().tobytes()]
            vector = self._vector((number + 1) % PICTURES if number in self.blind else number)
            found.append(vector * torch.nan if number == self.broken else vector)
        return torch.stack(found)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._vector(int(token)) for token in tokens[:, 0]])

    def tokenizer(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[self.texts.get(text, PICTURES)] for text in texts])

    def as_encoder(self) -> embedding.DualEncoder:
        return embedding.DualEncoder(
            model=self,
            preprocess=lambda image: torch.from_numpy(np.array(image)),
            tokenizer=self.tokenizer,
            how=embedding._how(self, "unused"),
            device="cpu",
            precision="uint8",
        )


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return world.write_shards(tmp_path / "shards", PICTURES)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Make every encoder directory load as the given oracle; returns the directory."""
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "weights").write_text("1")

    def use(oracle: Oracle) -> str:
        monkeypatch.setattr(embedding, "load_dual_encoder", lambda *_: oracle.as_encoder())
        return str(tmp_path / "encoder")

    return use


def _run(tmp_path: Path, encoder: str, *benchmarks: BenchmarkConfig, **changes):
    config = RunConfig(
        model_name="row", output=str(tmp_path / "results"), encoder=encoder, benchmarks=list(benchmarks), **changes
    )
    run_benchmarks(config)
    return [read_result(result_path(config.output, "row", benchmark.name)) for benchmark in benchmarks]


def test_an_oracle_is_right_and_a_blind_spot_costs_what_it_must(tmp_path, shards, use):
    retrieval = BenchmarkConfig(name="scenes", task="retrieval", data=str(shards))
    (perfect,) = _run(tmp_path, use(Oracle()), retrieval)
    assert {name: metric.value for name, metric in perfect.metrics.items() if "median" not in name} == {
        **{f"{way}_r{k}": 1.0 for way in ("t2i", "i2t") for k in (1, 5, 10)},
        "mean_r1": 1.0,
        "mean_recall": 1.0,
    }
    assert perfect.metrics["t2i_median_rank"].value == 1.0
    assert perfect.metrics["t2i_r1"].ci_low > 0.7  # Wilson over twelve pictures, no false certainty
    assert perfect.metrics["t2i_r1"].ci_low < 1.0

    (result,) = _run(tmp_path, use(Oracle(blind=(3,))), retrieval, overwrite=True)
    # picture 3 has the vector of picture 4. I→T: 3 finds 4's captions. T→I: 4's captions find 3 and 4 alike,
    # 3's own are as far from every picture and hit one of the twelve by chance.
    assert result.metrics["i2t_r1"].value == pytest.approx(11 / 12)
    assert result.metrics["t2i_r1"].value == pytest.approx((10 + 1 / 2 + 1 / 12) / 12)
    assert result.metrics["t2i_r1"].n == 36
    assert result.metrics["t2i_r1"].clusters == 12
    assert result.metrics["mean_r1"].value == pytest.approx((11 + 10 + 1 / 2 + 1 / 12) / 24)


def test_items_carry_what_the_metrics_and_the_report_need(tmp_path, shards, use):
    (result,) = _run(tmp_path, use(Oracle(blind=(3,))), BenchmarkConfig(name="retrieval", data=str(shards)))
    items = read_items(result)
    assert set(ITEM_COLUMNS) <= set(items.columns)
    assert items["item"].is_unique
    for metric in result.metrics.values():
        columns = {name: items[name].to_numpy() for name in metric.columns}
        assert aggregate(metric.aggregation, columns, metric.columns) == pytest.approx(metric.value)
    asked = items[items["direction"] == "t2i"].set_index("question")
    assert asked.loc[world.captions(5)[0], "prediction"] == asked.loc[world.captions(5)[0], "target"]
    pictures = items[items["direction"] == "i2t"]
    assert all(Image.open(io.BytesIO(content)).size == (64, 64) for content in pictures["thumbnail"])
    wrong = pictures[pictures["i2t_r1"] < 1]
    assert len(wrong) == 1
    assert wrong["prediction"].item() in world.captions(4)


def test_protocol_states_data_and_input(tmp_path, shards, use):
    (result,) = _run(tmp_path, use(Oracle()), BenchmarkConfig(name="retrieval", data=str(shards)))
    stated = result.protocol
    assert stated["data_hash"] == load_caption_set(DatasetSpec(path=str(shards))).hash
    assert (stated["pictures"], stated["captions"], stated["captions_per_picture"]) == (12, 36, "3")
    assert (stated["input_resolution"], stated["input_resize"], stated["input_interpolation"]) == (
        64,
        "squash",
        "bilinear",
    )
    assert (stated["precision"], stated["torch"]) == ("uint8", torch.__version__.partition("+")[0])
    assert stated["open_clip_torch"] == version("open_clip_torch")
    (fewer,) = _run(tmp_path, use(Oracle()), BenchmarkConfig(name="retrieval", data=str(shards), captions_per_image=2))
    assert fewer.fingerprint != result.fingerprint
    assert fewer.protocol["captions"] == 24


def test_a_second_run_skips_until_model_data_or_settings_change(tmp_path, shards, use, capsys):
    benchmark = BenchmarkConfig(name="retrieval", data=str(shards))
    encoder = use(Oracle())

    def created() -> str:
        (result,) = _run(tmp_path, encoder, benchmark)
        return result.path.stat().st_mtime_ns

    first = created()
    assert created() == first
    assert "done already" in capsys.readouterr().err
    Path(encoder, "weights").write_text("2")  # another model
    from benchmarks.tasks.eval_model import _model_hash

    _model_hash.cache_clear()  # a new process would read the directory anew
    second = created()
    assert second > first
    world.write_shards(shards, PICTURES - 1)  # other data
    third = created()
    assert third > second
    result_path(tmp_path / "results", "row", "retrieval").with_name("retrieval.items.parquet").unlink()
    assert created() > third  # half a result is none


def test_failures_do_not_stop_the_others_and_are_named_at_the_end(tmp_path, shards, use, capsys):
    (tmp_path / "empty").mkdir()
    empty = [BenchmarkConfig(name=name, task="retrieval", data=str(tmp_path / "empty")) for name in ("one", "two")]
    good = BenchmarkConfig(name="retrieval", data=str(shards))
    with pytest.raises(UserError, match=r"^failed: one \(.*none fits\), two \(.*none fits\)$"):
        _run(tmp_path, use(Oracle()), empty[0], good, empty[1])
    failed, found = (read_result(result_path(tmp_path / "results", "row", name)) for name in ("two", "retrieval"))
    assert (failed.status, failed.metrics, failed.items) == ("failed", {}, None)
    assert "expected captions in one of the formats" in failed.failure_reason
    assert found.status == "ok"
    assert "one: failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "misspelt"}, "^encoder: misspelt: no such directory; expected an encoder directory"),
        ({"encoder": "timm:resnet18"}, "^encoder: 'timm:resnet18' has no text tower"),
        ({"encoder": None, "llava": "x"}, "^encoder: expected an encoder directory"),
        ({"data": "nowhere"}, r"^benchmarks\[1\]\.data: nowhere: no such file or directory \(benchmark 'retrieval'\)"),
        ({"image_root": "nowhere"}, r"^benchmarks\[1\]\.image_root: nowhere: no such file"),
        ({"output": "a-file"}, "^a-file/row: cannot write here"),
        ({"output": "/proc/nowhere"}, "^/proc/nowhere/row: cannot write here"),
    ],
)
def test_a_mistake_in_the_config_is_told_at_once_and_leaves_no_trace(tmp_path, monkeypatch, shards, use, changes, said):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    benchmark = {"name": "retrieval", "data": str(shards)}
    benchmark |= {name: changes.pop(name) for name in ("data", "image_root") if name in changes}
    row = {"model_name": "row", "output": "results", "encoder": use(Oracle()), **changes}
    with pytest.raises(UserError, match=said):
        run_benchmarks(RunConfig(**row, benchmarks=[BenchmarkConfig(**benchmark)]))
    assert not Path("results").exists()


def test_a_failure_never_replaces_numbers(tmp_path, shards, use, capsys):
    benchmark = BenchmarkConfig(name="retrieval", data=str(shards))
    (before,) = _run(tmp_path, use(Oracle()), benchmark)
    with pytest.raises(UserError, match=r"^failed: retrieval \(.*not finite"):
        _run(tmp_path, use(Oracle(broken=5)), benchmark, overwrite=True)
    assert "the earlier result is kept" in capsys.readouterr().err
    after = read_result(before.path)
    assert after == before
    assert len(read_items(after)) == 4 * PICTURES


def test_features_that_are_not_finite_are_refused_by_name(tmp_path, shards, use):
    with pytest.raises(UserError, match=r"not finite for picture 'shard-00001.tar/000000005.png'"):
        _run(tmp_path, use(Oracle(broken=5)), BenchmarkConfig(name="retrieval", data=str(shards)))


def test_choice_by_hand(tmp_path, use):
    world_dir = tmp_path / "pairs"
    world_dir.mkdir()
    rows = []
    for number in range(4):
        world.picture(number).save(world_dir / f"{number}.png")
        for kind in ("swap", "add"):
            rows.append(
                {
                    "kind": kind,
                    "image": f"{number}.png",
                    "caption": world.captions(number)[0],
                    "negative": world.captions(5)[0] if kind == "swap" or number else world.captions(number)[1],
                }
            )
    (world_dir / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    benchmark = BenchmarkConfig(name="sugar", task="choice", data=str(world_dir / "pairs.jsonl"))
    (result,) = _run(tmp_path, use(Oracle(blind=(2,))), benchmark)
    # picture 2 looks like 3: both its pairs are ties; picture 0's 'add' pair names it twice: a tie
    assert result.metrics["accuracy"].value == pytest.approx((1 + 0.5 + 2 + 2 * 0.5 + 2) / 8)
    assert result.metrics["accuracy_swap"].value == pytest.approx(3.5 / 4)
    assert result.metrics["accuracy_add"].n == 4
    items = read_items(result)
    assert items["thumbnail"].notna().sum() == 4
    assert items.loc[items["category"] == "swap", "score"].tolist() == [1, 1, 0.5, 1]


# ------------------------------------------------------------------------------------------ a real encoder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_stock_open_clip_directory(tmp_path, shards):
    """A directory written by open_clip alone is evaluated; an untrained one is near chance."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file
    from transformers import BertTokenizer

    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 60, "width": 32, "heads": 2, "layers": 1},
    }
    directory = tmp_path / "stock"
    directory.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *world.COLORS,
        *("a", "square", "number", "there", "is"),
    ]
    (directory / "vocab.txt").write_text("\n".join([*words, ".", ",", *map(str, range(20))]))
    BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    model_cfg["text_cfg"] |= {"hf_tokenizer_name": str(directory)}
    torch.manual_seed(0)
    model = open_clip.CLIP(**{**model_cfg, "vision_cfg": open_clip.CLIPVisionCfg(**model_cfg["vision_cfg"])})
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    (result,) = _run(tmp_path, str(directory), BenchmarkConfig(name="retrieval", data=str(shards)))
    assert result.protocol["input_interpolation"] == "bilinear"
    assert result.protocol["input_resolution"] == 32
    assert result.metrics["t2i_r1"].value < 0.5
    assert len(pd.unique(read_items(result)["prediction"])) > 1
