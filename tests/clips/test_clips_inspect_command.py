"""``clips data inspect`` and ``clips data index``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import clips_world
import pytest

from clips.cli import COMMANDS
from clips.commandline.commands import dispatch
from clips.data.formats.source import training_formats
from clips.data.sources import SourceConfig, open_source
from clips.data.tar_index import ShardIndex, index_shard
from clips.errors import UserError
from clips.loader.inspect_command import IndexShardsConfig, InspectDatasetConfig, collect_stats, run_index, run_inspect


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Eight samples: one without an image, one undecodable, two with the same web caption."""
    samples = {f"{number:09d}": clips_world.sample(number) for number in range(8)}
    del samples["000000002"]["png"]
    samples["000000003"]["png"] = b"nothing"
    samples["000000005"]["json"] = samples["000000006"]["json"]
    samples["000000004"]["json"] = json.dumps(clips_world.captions(4) | {"web_caption": "<b>red</b> \x1b]0;x"}).encode()
    return clips_world.write_shard(tmp_path / "data" / "shard.tar", samples).parent


def test_inspect_counts_measures_and_shows(shards: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = InspectDatasetConfig(path=str(shards), num_samples=4, num_shown=2)
    some = collect_stats(open_source(config), config)
    assert (some.samples, some.scanned, [example.name[-1] for example in some.examples]) == (8, 4, ["0", "7"])
    run_inspect(InspectDatasetConfig(path=str(shards), num_shown=1))
    assert capsys.readouterr().out.count("web: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    run_inspect(InspectDatasetConfig(path=str(shards), num_shown=8))
    told = capsys.readouterr().out
    assert "8 in the source, 8 read, 2 invalid" in told
    assert "1 × no image (shard.tar/000000002)" in told
    assert "0.0% are longer than the text tower's context of 80 tokens" in told
    assert "16.7% of the web captions are another sample's" in told
    assert "unknown     0.0% of the tokens of captions are unknown to the tokenizer\n" in told
    assert "shard.tar/000000007\nweb: red thing 7\nsynthetic: A red square. It lies" in told
    assert "<b>red</b> \N{REPLACEMENT CHARACTER}]0;x" in told  # a caption cannot control the terminal
    assert "\x1b" not in told


def test_captions_that_the_tokenizer_cannot_write_are_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"web_caption": f"ភាសា {number}", "synthetic_caption": None} for number in range(4)]
    samples = {f"{number}": {"png": clips_world.draw_image(number), "json": json.dumps(row).encode()}
               for number, row in enumerate(rows)}  # fmt: skip
    shard = clips_world.write_shard(tmp_path / "data" / "0.tar", samples)
    run_inspect(InspectDatasetConfig(path=str(shard), num_shown=0))
    said = "50.0% of the tokens of captions are unknown to the tokenizer; "
    assert f"unknown     {said}" in capsys.readouterr().out
    clips_world.trained(shard, tmp_path / "out", max_steps=1, recipe={"name": "clip"})
    assert f"data: {said}" in capsys.readouterr().err


def test_lengths_are_in_wordpiece_tokens(shards: Path):
    config = InspectDatasetConfig(path=str(shards))
    found = collect_stats(open_source(config), config)
    assert [count for count in found.tokens["web"] if count == 3] == [3] * 5  # "red thing 0"
    assert set(found.sentences) == {3}
    assert set(found.sentence_tokens) == {3, 5, 4}  # "A red square", "It lies on a table", "There are 3 dots"
    assert set(found.sizes) == {(40, 32)}
    assert found.formats == {"PNG": 6}


@pytest.mark.parametrize("form", ["karpathy", "coco"])
def test_formats_of_sentences_need_no_names_of_captions(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(clips_world.draw_image(0))
    texts = ["A red car.", "A car stands there.", "Two words."]
    image = {"filename": "0.png", "file_name": "0.png", "id": 1, "split": "train"}
    content = {
        "images": [{**image, "sentences": [{"raw": text} for text in texts]}],
        "annotations": [{"image_id": 1, "caption": text} for text in texts],
    }
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    arguments = ["data", "inspect", str(path), "--format", form]
    assert dispatch("clips", "", COMMANDS, arguments) == 0
    assert "median 2 (5 % below 2, 5 % above 2) sentences in a synthetic caption" in capsys.readouterr().out
    assert dispatch("clips", "", COMMANDS, [*arguments, "--synthetic_caption", "null"]) == 0  # none, not the default
    assert "synthetic   none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("synthetic", "expected"),
    [
        (None, "median 1 (5 % below 1, 5 % above 1) tokens"),  # one of those of laion_coco and capsfusion
        (
            "[capsfusion]",
            "median 1 (5 % below 1, 5 % above 1) tokens; 0.0% are longer than the text tower's context of 80 tokens",
        ),
        ("laion_2b", "median 2 (5 % below 2, 5 % above 2) tokens"),
        ("[laion_2b, laion_coco, capsfusion]", "median 1 (5 % below 1, 5 % above 2) tokens"),
        ("null", "synthetic   none"),
    ],
)
def test_synthetic_captions_are_named_by_one_column_or_several(synthetic, expected, tmp_path, capsys):
    (tmp_path / "0.png").write_bytes(clips_world.draw_image(0))
    row = {"image_url": "0.png", "laion_2b": "red thing", "laion_coco": "picture"}
    lines = [json.dumps({**row, "capsfusion": "square" if number % 2 else None}) + "\n" for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    arguments = ["data", "inspect", str(tmp_path / "rows.jsonl"), "--format", "capsfusion"]
    arguments += ["--synthetic_caption", synthetic] if synthetic else []
    assert dispatch("clips", "", COMMANDS, arguments) == 0
    assert expected in capsys.readouterr().out


def test_where_captions_are_is_resolved_by_the_format():
    configs = {name: SourceConfig(path="x", format=name) for name in training_formats()}
    found = {name: (config.web_caption, config.synthetic_caption) for name, config in configs.items()}
    assert found.pop("capsfusion") == ("laion_2b", ("laion_coco", "capsfusion"))
    columns = {name: found.pop(name) for name in ("webdataset", "table", "datasets")}
    assert set(columns.values()) == {("web_caption", "synthetic_caption")}
    assert set(found.values()) == {("random_sentence", "other_sentences")}
    web_only = InspectDatasetConfig(path="x", format="coco", web_caption="first_sentence", synthetic_caption=None)
    assert web_only.synthetic_caption is None


def test_index_writes_what_training_reads(tmp_path: Path):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(4, 2))
    run_index(IndexShardsConfig(path=str(folder)))
    sizes = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    assert sizes == {"shard-00000.tar": 4, "shard-00001.tar": 2}
    assert len(open_source(SourceConfig(path=str(folder)))) == 6
    assert [path.name for path in folder.iterdir() if path.suffix not in {".tar", ".json"}] == []
    # a command goes on after the name: before, its shards were counted under names that training did not look for
    remote = {"path": f"pipe:cat {folder}/shard-{{00000..00001}}.tar -", "cache_dir": str(tmp_path / "cache")}
    run_index(IndexShardsConfig(output=str(tmp_path / "sizes.json"), **remote))
    assert json.loads((tmp_path / "sizes.json").read_text()) == sizes
    assert len(open_source(SourceConfig(shard_sizes=str(tmp_path / "sizes.json"), **remote))) == 6
    with pytest.raises(UserError, match="output: expected a file, since"):
        run_index(IndexShardsConfig(path="s3://bucket/{0..3}.tar"))


def test_shards_are_distinguished_by_their_full_names(tmp_path: Path):
    """Cut at the space, as commands are, all shards would have the number of samples of the last."""
    folder = clips_world.write_shards(tmp_path / "data", sizes=(5, 2))
    for number in range(2):
        (folder / f"shard-{number:05d}.tar").rename(folder / f"train {number}.tar")
    run_index(IndexShardsConfig(path=str(folder)))
    assert json.loads((folder / "sizes.json").read_text(encoding="utf-8")) == {"train 0.tar": 5, "train 1.tar": 2}
    assert len(open_source(SourceConfig(path=str(folder)))) == 7
    for name in "01":
        clips_world.write_shards(tmp_path / name, sizes=(1,))
    with pytest.raises(UserError, match="expected shards of different file names, got 2 of 1"):
        run_index(IndexShardsConfig(path=f"{tmp_path}/{{0..1}}/shard-00000.tar", output=str(tmp_path / "out.json")))


def test_interrupted_counting_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(4, 2, 3))
    config = IndexShardsConfig(path=str(folder))
    whole = (folder / "shard-00001.tar").read_bytes()
    (folder / "shard-00001.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"shard-00001\.tar"):
        run_index(config)
    assert not (folder / "sizes.json").exists()
    with (folder / "sizes.json.partial").open("a") as record:  # the computer stopped here
        record.write('["shard-000')
    (folder / "shard-00001.tar").write_bytes(whole)
    counted: list[str] = []

    def counting(shard: Path) -> ShardIndex:
        counted.append(shard.name)
        return index_shard(shard)

    monkeypatch.setattr("clips.data.tar_index.index_shard", counting)
    run_index(config)
    assert counted == ["shard-00001.tar"]  # the others were counted before the error was told
    assert list(json.loads((folder / "sizes.json").read_text()).values()) == [4, 2, 3]


def test_inspection_of_remote_data_copies_few_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = clips_world.write_shards(tmp_path / "data", sizes=(1,) * 40)
    run_index(IndexShardsConfig(path=str(folder)))
    remote = {"path": f"file://{folder}/shard-{{00000..00039}}.tar", "cache_dir": str(tmp_path / "cache")}
    config = InspectDatasetConfig(**remote, num_samples=30)
    assert collect_stats(open_source(config), config).scanned == 16
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 16
    assert "only 16 of 40 shards are inspected" in capsys.readouterr().err


def test_a_source_without_usable_samples_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,a dog\nb.jpg,a cat\n")
    fields = {
        "format": "table",
        "web_caption": "caption",
        "synthetic_caption": None,
    }
    config = InspectDatasetConfig(path=str(tmp_path / "t.csv"), **fields)
    with pytest.raises(UserError, match=r"t\.csv: none of 2 samples can be used"):
        run_inspect(config)
    assert "2 × missing image" in capsys.readouterr().out


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path):
    """As in ``clips data inspect … | head -1``; rich's console exits with 1 by itself."""
    data, (reader, writer) = clips_world.write_shards(tmp_path), os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "clips", "data", "inspect", str(data)]
    ended = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
