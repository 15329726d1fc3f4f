"""``clips-bench run encoder DIR``, also while it is trained, and ``clips-bench provenance`` of its result."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import bench_world as world
import clips_world
import pytest
import torch
from report_material import edit, items_table, put_result
from safetensors.torch import load_file, save_file

from benchmarks.analysis.provenance import ProvenanceNode, lines, trace
from benchmarks.cli import COMMANDS
from benchmarks.results.results import read_result
from benchmarks.study.state import StepRecord, write_record
from clips.commandline.commands import dispatch
from clips.core.artifact import MANIFEST, directory_hash, write_manifest
from clips.export import ExportConfig, run_export
from clips.train import train
from clips.training.run_dir import list_checkpoints
from llava_bridge.data.sources import ConversationSourceConfig
from llava_bridge.training.inputs import describe_data


def bench(*words: str) -> int:
    return dispatch("clips-bench", "", COMMANDS, words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, an encoder that was trained on them, and its result."""
    folder = tmp_path_factory.mktemp("provenance")
    data = clips_world.write_shards(folder / "train")
    train(clips_world.train_config(data, folder / "small", max_steps=3, keep_checkpoints_after_training=True))
    world.write_shards(folder / "test", 4)
    assert bench(*words(str(folder / "small"), folder / "test", "--output", str(folder / "results"))) == 0
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same, whose result names a copy of the encoder that a test may change."""
    shutil.copytree(made, tmp_path / "made")
    edit(tmp_path / "made/results/small/retrieval.json", model=model_of(tmp_path / "made/small"))
    return tmp_path / "made"


def model_of(directory: Path, path: object = None) -> dict[str, str]:
    return {"path": str(path or directory), "hash": json.loads((directory / MANIFEST).read_text())["hash"]}


def words(name: str, data: Path, *more: str) -> tuple[str, ...]:
    return ("run", "encoder", name, "--benchmarks", f"[{{name: retrieval, data: {data}}}]", *more)


@pytest.mark.slow
def test_during_training_its_latest_checkpoint_is_taken(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    latest = list_checkpoints(made / "small")[-1]
    shutil.copytree(latest, tmp_path / "going-on" / latest.relative_to(made / "small"))
    assert bench(*words("going-on", made / "test")) == 0
    ours = read_result(tmp_path / "results/going-on-step-2/retrieval.json")
    run_export(ExportConfig(checkpoint=str(latest), output="exported"))
    assert bench(*words("exported", made / "test")) == 0
    assert read_result(tmp_path / "results/exported/retrieval.json").metrics == ours.metrics
    capsys.readouterr()
    assert bench(*words("going-on", made / "test")) == 0
    assert "done already" in capsys.readouterr().err


@pytest.mark.slow
def test_another_training_of_the_same_name_and_steps_is_another_model(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    latest = list_checkpoints(made / "small")[-1]
    shutil.copytree(latest, tmp_path / "one/small" / latest.relative_to(made / "small"))
    train(
        clips_world.train_config(
            made / "train", tmp_path / "new", max_steps=3, keep_checkpoints_after_training=True, seed=7
        )
    )
    shutil.copytree(tmp_path / "new/.checkpoints", tmp_path / "two/small/.checkpoints")
    for name in ("one", "two"):
        assert bench(*words(f"{name}/small", made / "test", "--model_name", name)) == 0
    one, two = (read_result(tmp_path / "results" / name / "retrieval.json") for name in ("one", "two"))
    assert one.model["hash"] != two.model["hash"]


def test_results_of_another_directory_of_the_same_name_are_not_replaced(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in ("runs", "moved", "imported"):
        shutil.copytree(made / "small", tmp_path / place / "small")
    weights = tmp_path / "imported/small/open_clip_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
    (tmp_path / "imported/small" / MANIFEST).unlink()  # it has the hash of the weights
    result = tmp_path / "results/small/retrieval.json"
    assert bench(*words("runs/small", made / "test")) == 0
    before = result.read_bytes()
    assert bench(*words("moved/small", made / "test")) == 0
    assert "done already" in capsys.readouterr().err
    assert bench(*words("imported/small", made / "test")) == 2
    assert "model_name: results/small/retrieval.json is of runs/small, not imported/small" in capsys.readouterr().err
    assert result.read_bytes() == before
    assert bench(*words("imported/small", made / "test", "--model_name", "imported")) == 0
    assert bench(*words("imported/small", made / "test", "--overwrite", "true")) == 0
    assert read_result(result).model["path"] == "imported/small"
    edit(result, model={"path": "imported/small", "hash": "of the weights before it was trained again"}, key="other")
    assert bench(*words("imported/small", made / "test")) == 0
    assert read_result(result).model["hash"] == directory_hash("imported/small")


def test_no_such_directory(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert bench(*words("nowhere", made / "test")) == 2
    assert "encoder: nowhere: no such directory" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_provenance_from_a_number_to_the_shards(made, capsys):
    assert bench("provenance", str(made / "results/small")) == 0
    said = capsys.readouterr().out.splitlines()
    record = json.loads((made / "results/small/retrieval.json").read_text())
    manifest = json.loads((made / "small" / MANIFEST).read_text())
    assert said[0].startswith("small on retrieval: T→I R@1 ")
    assert f"data: {record['protocol']['data_hash'][:12]}, split taken whole" in said[2] + said[3]
    model, source = (next(line for line in said if line.strip().startswith(name)) for name in ("model:", "sources:"))
    assert str(made / "small") in model
    assert manifest["hash"][:12] in model
    assert "CHANGED" not in model
    assert str(made / "train") in source
    assert source.index("sources") > model.index("model") > 0  # what something rests on stands below it, indented
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert any("3 steps" in line and device in line for line in said)


def test_what_two_inputs_have_in_common_is_printed_once():
    data = ProvenanceNode("train: data (0123)", ["created"], [ProvenanceNode("photos: images (4567)", ["5 files"])])
    parts = [ProvenanceNode(f"{part}: {part}.json (89)", [], [data]) for part in ("align", "instruct")]
    parts += [ProvenanceNode("again: align.json (89)", [], [data])]
    counted = ProvenanceNode("sources: data (0123)", ["9 shards", *data.facts], data.made_from)
    assert [line.strip() for line in lines(ProvenanceNode("model: llava (ab)", [], [*parts, counted]))] == [
        *("model: llava (ab)", "align: align.json (89)", "train: data (0123)", "· created"),
        *("photos: images (4567)", "· 5 files", "instruct: instruct.json (89)", "train: data (0123) (as above)"),
        "again: align.json (89) (as above)",
        *("sources: data (0123) (as above)", "· 9 shards"),
    ]


def test_provenance_of_an_artifact_without_a_result(made, capsys):
    assert bench("provenance", str(made / "small")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"directory: {made / 'small'} ({model_of(made / 'small')['hash'][:12]})"
    assert any("3 steps" in line for line in said)
    assert any(line.strip().startswith(f"sources: {made / 'train'}") for line in said)


def test_changed_and_missing_inputs_are_reported(copied, capsys):
    weights = copied / "small/open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert bench("provenance", str(copied / "results/small/retrieval.json")) == 0
    said = capsys.readouterr().out
    assert "CHANGED since: now" in said
    assert "sources:" not in said  # what is there now was made otherwise
    shutil.rmtree(copied / "small")
    assert bench("provenance", str(copied / "results/small/retrieval.json")) == 0
    assert "small (" in (last := capsys.readouterr().out.strip().splitlines()[-1])
    assert last.endswith("not on this machine")


def test_changed_training_data_are_reported(tmp_path, capsys):
    """Only the model and the directory of a conversation file were compared with their hashes."""
    for name in ("shards", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(b"before")
    write_manifest(tmp_path / "shards", kind="data", config={})
    shards = {"path": str(tmp_path / "shards"), "shards": 1, "hash": directory_hash(tmp_path / "shards")}
    (tmp_path / "chat.json").write_text("[]")
    (tmp_path / "1.tar").write_bytes(b"after")
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/a.jsonl").write_text("[]")
    configs = [ConversationSourceConfig(path=str(tmp_path / "chat.json")),
               ConversationSourceConfig(path=str(tmp_path / "{1..1}.tar"), format="webdataset"),
               ConversationSourceConfig(path=str(tmp_path / "talks"), format="conversations")]  # fmt: skip
    data = {"sources": [shards], "instruct": [*map(describe_data, configs)]}
    write_manifest(tmp_path / "model", kind="llava", config={}, data=data)

    def said(*more: str) -> list[str]:
        assert bench("provenance", str(tmp_path / "model"), *more) == 0
        return [line.strip() for line in capsys.readouterr().out.splitlines() if not line.strip().startswith("·")]

    unchanged = said()
    assert [line.partition(":")[0] for line in unchanged] == ["directory", "sources", *["instruct"] * 3]
    assert not any("CHANGED" in line or "not on" in line for line in unchanged)
    for file in ("shards/0.tar", "chat.json", "1.tar", "talks/a.jsonl"):
        (tmp_path / file).write_text("[ ]")
    assert ["CHANGED since: now" in line for line in said()] == [False, True, True, True, True]
    assert said("--check", "false") == unchanged


@pytest.mark.parametrize("later", [True, False])
def test_a_later_job_of_a_step_is_not_that_of_an_earlier_result(later, tmp_path):
    """A step runs again for a new benchmark; the commit and command of that job stood below the other results."""
    path = put_result(tmp_path / "results", "small", "retrieval", items_table(0.5, benchmark="retrieval"))
    started = datetime.datetime.fromisoformat(read_result(path).created).timestamp() + (60 if later else -60)
    write_record(
        tmp_path,
        StepRecord(
            name="evaluate-small", kind="evaluation", command="clips-bench run", key="", status="done", started=started,
            output_paths=("results/small/retrieval.json",),
        ),
    )  # fmt: skip
    facts = trace(read_result(path)).facts
    assert ("step evaluate-small: not this result's job but a later one is recorded" in facts) == later
    assert ("step's command: clips-bench run" in facts) != later


def test_paths_are_found_from_any_folder_and_where_a_study_was_moved_to(copied, tmp_path, monkeypatch, capsys):
    study = tmp_path / "runs/study"
    (study / "encoders").mkdir(parents=True)
    (copied / "small").rename(study / "encoders/small")
    shutil.move(copied / "results", study / "results")
    edit(study / "results/small/retrieval.json",
         model=model_of(study / "encoders/small", "runs/study/encoders/small"))  # fmt: skip
    for folder, where in ((tmp_path, study), (tmp_path / "made", study), (tmp_path, tmp_path / "moved")):
        if where != study:
            study.rename(where)
        monkeypatch.chdir(folder)
        assert bench("provenance", str(where / "results/small")) == 0
        said = capsys.readouterr().out
        assert "encoders/small (" in said
        assert "sources: " in said


def test_a_foreign_model_has_no_provenance(copied, capsys):
    (copied / "small" / MANIFEST).unlink()
    assert bench("provenance", str(copied / "results/small"), "--check", "false") == 0
    assert capsys.readouterr().out.strip().endswith("not made by this suite")
