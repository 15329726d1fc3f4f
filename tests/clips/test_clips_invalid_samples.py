"""Invalid samples are counted exactly and named in bounded number, over processes, epochs and resumes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips_world
import pytest
import torch
from clips_world import metrics, stopped_at, train, trained

from clips import train as training
from clips.data.sources import SourceConfig
from clips.errors import UserError
from clips.loader.data_config import DataConfig
from clips.loader.invalid_samples import MAX_NAMES, MAX_REASONS, OTHER_REASONS, InvalidSamples, restored
from clips.loader.loader import TrainDataset
from clips.model.tokenizer import EOS
from clips.parallel.distributed import DistributedContext, start_processes
from clips.training.checkpoint import Checkpointer
from clips.training.run_dir import (
    TRAIN_STATE_FILE,
    TrainState,
    list_checkpoints,
    read_train_state,
    train_state_text,
)
from clips.training.setup import open_train_dataset

REASONS = ("undecodable image", "no caption 'web_caption'", "missing image")


def met(indexes: list[int]) -> list[tuple[int, str, str]]:
    """As `TrainingData` gives them."""
    return [(index, f"{index // 10_000:05d}.tar/{index:09d}", REASONS[index % 3]) for index in indexes]


def run_of(samples: int, state: TrainState, max_invalid_ratio: float) -> Any:
    data = SimpleNamespace(max_invalid_ratio=max_invalid_ratio)
    config = SimpleNamespace(data=data)
    return SimpleNamespace(state=state, data=range(samples), config=config, processes=DistributedContext())


def test_a_checkpoint_of_a_hundred_thousand_invalid_samples_is_small(tmp_path: Path):
    """Names alone would take 5 MB."""
    start_processes()
    run = run_of(2_000_000, TrainState(step=7, samples_seen=100_000), 1.0)
    indexes = random.Random(0).sample(range(2_000_000), 100_000)
    for start in range(0, 100_000, 1000):
        run.state.invalid_samples.add(met(indexes[start : start + 1000]))
    training.check_invalid_samples(run)
    with Checkpointer(tmp_path, DistributedContext()) as checkpointer:
        checkpointer.save({"model.x": torch.zeros(1)}, run.state, {})
    (kept,) = list_checkpoints(tmp_path)
    assert (kept / TRAIN_STATE_FILE).stat().st_size < 500_000
    resumed = read_train_state(kept).invalid_samples
    assert resumed == run.state.invalid_samples
    report = resumed.report()
    assert (report["count"], sum(report["by_reason"].values())) == (100_000, 100_000)
    assert (len(report["samples"]), report["more"]) == (MAX_NAMES, 100_000 - MAX_NAMES)
    expected = {name: reason for _, name, reason in met(sorted(indexes)[:MAX_NAMES])}
    assert report["samples"] == expected


def test_the_limit_is_exact_beyond_the_names_and_over_a_resume(tmp_path: Path):
    """300 of 1,000 samples are allowed; the 301st different one stops the run, however often the others come.

    Of a larger data set the limit is a ratio of the samples seen so far.
    """
    run = run_of(10_000, TrainState(samples_seen=4000), 0.01)
    run.state.invalid_samples.add(met(list(range(24))))
    training.check_invalid_samples(run)
    run.state.samples_seen = 2000
    with pytest.raises(UserError, match="24 of 2000 samples are invalid"):
        training.check_invalid_samples(run)
    run = run_of(1000, TrainState(samples_seen=1000), 0.3)
    run.state.invalid_samples.add(met(list(range(0, 600, 2))))  # 300
    training.check_invalid_samples(run)
    (tmp_path / TRAIN_STATE_FILE).write_text(train_state_text(run.state))
    again = run_of(1000, read_train_state(tmp_path), 0.3)
    again.state.samples_seen = 5000
    again.state.invalid_samples.add(met(list(range(0, 600, 2))))  # the next epochs meet the same
    training.check_invalid_samples(again)
    assert again.state.invalid_samples.count == 300
    again.state.invalid_samples.add(met([999]))
    with pytest.raises(UserError, match=r"301 of 1000 samples are invalid, more than data.max_invalid_ratio \(0.3\)"):
        training.check_invalid_samples(again)


def test_the_record_does_not_depend_on_order_or_process():
    indexes = random.Random(1).sample(range(100_000), 5000)
    found = []
    for parts in (1, 7):
        one = InvalidSamples()
        for part in range(parts):
            one.add(met(indexes[part::parts]))
        found.append(one)
    assert found[0].report() == found[1].report()
    assert found[0].bits == found[1].bits


def test_reasons_are_bounded_and_add_up():
    found = InvalidSamples()
    found.add((index, str(index), f"shard-{index}.tar: no such file") for index in range(1000))
    assert len(found.by_reason) == MAX_REASONS + 1
    assert found.by_reason[OTHER_REASONS] == 1000 - MAX_REASONS


def test_equal_names_of_two_sources_are_both_reported(tmp_path: Path):
    """Each source numbers its shards from 0."""
    samples = {f"{number:05d}": {"jpg": b"junk", "json": clips_world.sample(number)["json"]} for number in range(3)}
    for source in "ab":
        clips_world.write_shard(tmp_path / source / "00000.tar", samples)
    sources = tuple(SourceConfig(path=str(tmp_path / source)) for source in "ab")
    data = TrainDataset(DataConfig(sources=sources), size=32, seed=0, batch_size=2, prepare=None)
    found = InvalidSamples()
    found.add((index, data.name(index), REASONS[index % 3]) for index in (0, 1, 2, 3, 5))
    told = found.report()
    assert (told["count"], len(told["samples"]), told["more"]) == (5, 5, 0)
    assert told["samples"] == {
        "00000.tar/00000 (sample 0)": REASONS[0],
        "00000.tar/00001": REASONS[1],
        "00000.tar/00002 (sample 2)": REASONS[2],
        "00000.tar/00000 (sample 3)": REASONS[0],
        "00000.tar/00002 (sample 5)": REASONS[2],
    }


@pytest.mark.parametrize("broken", [{"count": 1}, {"count": 1, "by_reason": {}, "named": [], "bits": "eJw="}, [1]])
def test_a_broken_record_is_named(tmp_path: Path, broken: Any):
    (tmp_path / TRAIN_STATE_FILE).write_text(json.dumps({"step": 3, "invalid_samples": broken}))
    with pytest.raises(UserError, match=r"train_state\.json: broken"):
        read_train_state(tmp_path)


def test_a_stage_of_the_bridge_names_the_first_and_counts_all(tmp_path: Path, capsys, monkeypatch):
    from llava_bridge.training.checkpoints import mark_complete, read_marker
    from llava_bridge.training.trainer import StageTrainer

    trainer = StageTrainer.__new__(StageTrainer)
    trainer.stage_name, trainer.invalid, trainer.max_invalid_ratio = "align", InvalidSamples(), 0.5
    trainer.train_dataset = range(100_000)  # type: ignore[assignment]
    monkeypatch.setenv("WORLD_SIZE", "1")
    for start in range(0, 50_000, 1000):
        trainer.check_invalid(trainer.invalid.add(met(list(range(start, start + 1000)))))
    assert trainer.gather_invalid().count == 50_000
    told = capsys.readouterr()
    lines = (told.out + told.err).splitlines()
    assert len([line for line in lines if "align: skipped 0" in line]) == MAX_NAMES
    assert len([line for line in lines if "further ones are counted, not named" in line]) == 1
    mark_complete(tmp_path, trainer.invalid, 1.0)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 50_000
    trainer.invalid = restored(read_marker(tmp_path)["invalid_samples"])
    trainer.check_invalid(trainer.invalid.add(met([17, 49_999])))
    with pytest.raises(UserError, match="align: 50001 of 100000 samples are invalid"):
        trainer.check_invalid(trainer.invalid.add(met([50_000])))


def spoil(folder: Path, share: int) -> Path:
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(20)}
    for index in range(share):
        samples[f"{index:09d}"]["png"] = b"broken"
    clips_world.write_shard(folder / "a.tar", samples)
    return folder


def test_invalid_samples_are_skipped_counted_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = spoil(tmp_path / "data", 2)
    # Two runs of three steps: what the first met is remembered by the second.
    output = tmp_path / "run"
    config = clips_world.train_config(data, output, save_steps=3)
    with stopped_at(4):
        train(config)
    train(config)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["invalid_samples"] == {
        "count": 2,
        "by_reason": {"undecodable image": 2},
        "samples": {"a.tar/000000000": "undecodable image", "a.tar/000000001": "undecodable image"},
        "more": 0,
    }
    assert "2 invalid samples skipped (2 × undecodable image)" in capsys.readouterr().err
    assert [entry["step"] for entry in metrics(output)] == [2, 4, 6]


@pytest.mark.parametrize("recipe", ["clips", "clip", "recap"])
def test_empty_alt_texts_do_not_end_a_run(tmp_path: Path, recipe: str):
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(20)}
    for index in (4, 11, 13):
        words = {"web_caption": " ", "synthetic_caption": "A red square. It lies on a table."}
        samples[f"{index:09d}"]["json"] = json.dumps(words).encode()
    clips_world.write_shard(tmp_path / "data" / "a.tar", samples)
    strict = {"sources": [{"path": str(tmp_path / "data")}], "max_invalid_ratio": 0.0}
    fields = {"data": strict, "recipe": {"name": recipe, "caption_loss_weight": 0}, "max_steps": 5, "save_steps": 100}
    config = clips_world.train_config(tmp_path / "data", tmp_path / "run", **fields)
    data = open_train_dataset(config)
    rows = [data[position] for position in range(20)]
    text = "mixed" if recipe == "recap" else "web"
    empty = sum(row[text][1].item() == EOS for row in rows)  # begin, end: as the authors' code has it
    assert empty == (0 if recipe == "recap" else 3)
    train(config)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["invalid_samples"]["count"] == 0


def test_too_many_bad_samples_stop_the_run(tmp_path: Path):
    data = spoil(tmp_path / "data", 8)
    with pytest.raises(UserError, match=r"of 20 samples are invalid, more than data.max_invalid_ratio \(0.2\)"):
        trained(data, tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.json").exists()
