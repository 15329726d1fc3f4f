"""What is on the disk, not only in memory, when a command deletes checkpoints or ends."""

from __future__ import annotations

import json
from pathlib import Path

import bridge_world
import clips_world
import power_cut
import pytest
import report_material
from power_cut import Disk

from clips.core.artifact import atomic_artifact_dir, write_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("shards"))


def test_an_encoder_is_on_the_disk_before_its_checkpoints_are_deleted(tmp_path: Path, data: Path):
    stages = [{"max_steps": 4}, {"max_steps": 4, "model.image_size": 32}]
    config = clips_world.train_config(data, tmp_path / "runs" / "encoder", stages=stages, max_steps=None)
    with Disk(tmp_path).recording() as disk:
        clips_world.train(config)
    written = power_cut.contents(tmp_path / "runs")
    del written["encoder.json"]  # the config, by this test
    left = {name.removeprefix("runs/"): value for name, value in disk.contents().items()}
    assert {name: left.get(name) for name in written} == written
    assert {"encoder/open_clip_model.safetensors", "encoder/metrics.jsonl", "encoder.stages/1/manifest.json"} <= set(
        left
    )
    for output in ("encoder", "encoder.stages/1"):
        own = {f"runs/{name}": value for name, value in written.items() if name.startswith(f"{output}/")}
        ((_, then),) = [each for each in disk.before_deletions if each[0] == f"runs/{output}/.checkpoints.partial"]
        assert {name: then.get(name) for name in own} == own
        olds = [then for name, then in disk.before_deletions if f"{output}/.checkpoints/.step-" in name]
        for then in olds:  # an older checkpoint went: the newer ones are there
            assert any(name.startswith(f"runs/{output}/.checkpoints/step-") for name in then)


def test_a_manifest_is_on_the_disk_after_all_that_it_lists(tmp_path: Path, data: Path):
    """At every fsync, not only at the end."""
    config, seen = clips_world.train_config(data, tmp_path / "encoder", save_steps=100), 0
    disk = Disk(tmp_path)
    flush = disk._flush

    def check(path: Path) -> None:
        nonlocal seen
        flush(path)
        left = disk.contents()
        if "encoder/manifest.json" in left:
            seen += 1
            assert left["encoder/manifest.json"] == power_cut.digest(tmp_path / "encoder/manifest.json")
            files = json.loads((tmp_path / "encoder/manifest.json").read_text())["files"]
            assert {name: left.get(f"encoder/{name}") for name in files} == {
                name: file["hash"] for name, file in files.items()
            }

    disk._flush = check  # type: ignore[method-assign]
    with disk.recording():
        clips_world.train(config)
    assert seen


def test_a_directory_replaces_another_one_when_it_is_on_the_disk(tmp_path: Path):
    disk = Disk(tmp_path)
    for content in ("first", "second"):
        with disk.recording(), atomic_artifact_dir(tmp_path / "a" / "thing") as partial:
            (partial / "below").mkdir()
            (partial / "below" / "weights").write_text(content)
            write_manifest(partial, kind="scenes", config={})
        left = disk.contents()
        assert {name: left.get(name) for name in power_cut.contents(tmp_path)} == power_cut.contents(tmp_path)
    ((_, then),) = [each for each in disk.before_deletions if each[0] == "a/.thing.replaced"]
    assert then["a/thing/below/weights"] == power_cut.digest(tmp_path / "a/thing/below/weights")


def test_results_and_records_are_on_the_disk(tmp_path: Path):
    from benchmarks.study.state import StepRecord, write_record

    with Disk(tmp_path).recording() as disk:
        report_material.put_results(tmp_path / "study" / "results", {"clip": 0.4})
        write_record(tmp_path / "study", StepRecord(name="a", kind="b", command="c", key="d", status="done", started=1))
    assert disk.contents() == power_cut.contents(tmp_path)
    assert "study/steps/a/step.json" in disk.contents()


def test_answers_are_on_the_disk_batch_by_batch(tmp_path: Path):
    from benchmarks.tasks.output_cache import AnswerCache

    with Disk(tmp_path).recording() as disk:
        answers = AnswerCache(tmp_path / "results" / ".cache" / "answers" / "key")
        for batch in ({"1": "a dog"}, {"2": "a cat", "3": "a bird"}):
            answers.add(batch)
            assert disk.contents() == power_cut.contents(tmp_path) != {}


def test_the_metrics_of_a_step_are_on_the_disk_before_its_checkpoint(tmp_path: Path, data: Path):
    with Disk(tmp_path).recording() as disk:
        flush, seen = disk._flush, []

        def check(path: Path) -> None:
            flush(path)
            left = disk.contents()
            seen.extend(["encoder/metrics.jsonl" in left] * any("/step-" in name for name in left))

        disk._flush = check  # type: ignore[method-assign]
        clips_world.train(clips_world.train_config(data, tmp_path / "encoder", save_steps=1, logging_steps=1))
    assert seen
    assert all(seen)


@pytest.mark.slow
def test_a_llava_is_on_the_disk_before_its_checkpoints_and_stages_are_deleted(tmp_path: Path, bridge_parts):
    (tmp_path / "disk").mkdir()
    path = bridge_world.instruct_file(
        tmp_path, "one", bridge_parts, {}, output=f"{tmp_path}/disk/run/one", save_steps=1
    )
    driver = str(Path(__file__).with_name("durable_driver.py"))
    words = (driver, str(path), str(tmp_path / "disk"), str(tmp_path / "record.json"))
    done = bridge_world.run_python(*words, **bridge_world.launched())
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "record.json").read_text())
    written = {f"run/one/{name}": value for name, value in power_cut.contents(tmp_path / "disk/run/one").items()}
    assert {name: record["left"].get(name) for name in written} == written
    then = dict(record["before_deletions"])  # of a path that was deleted twice the last time
    assert {name: then["run/.one.work"].get(name) for name in written} == written
    weights = written["run/one/model.safetensors"]
    assert then["run/.one.work/instruct/checkpoints"]["run/.one.work/instruct/model/model.safetensors"] == weights
    rotated = then["run/.one.work/instruct/checkpoints/checkpoint-1"]
    assert rotated["run/.one.work/instruct/checkpoints/checkpoint-2/complete"] != "nothing"
    states = {name for name in rotated if "/checkpoint-2/" in name}
    assert any(name.endswith("optim_states.pt") for name in states)
    assert "nothing" not in {rotated[name] for name in states}
