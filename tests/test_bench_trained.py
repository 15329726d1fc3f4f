"""How models were trained: what `diff`, `compare` and reports say of it, and when they warn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_material import items_table, put_result

from benchmarks.analysis.compare_command import CompareConfig, build_comparison, compare
from benchmarks.analysis.diff_command import DiffConfig, run_diff
from benchmarks.analysis.provenance import trace
from benchmarks.report.notes import table_notes
from benchmarks.report.report import build_report
from benchmarks.results.results import read_result
from benchmarks.study.step_state import StepRecord, step_directory, write_record
from benchmarks.study.training_settings import (
    TrainingSetting,
    TrainingSettings,
    diff_training,
    is_confounder,
    read_training,
    training_of_result,
)
from clips.core.artifact import directory_hash, write_manifest


def put_encoder(
    directory: Path,
    *,
    data: str = "d" * 64,
    steps: int = 6,
    precision: str = "bf16",
    begun_with: Path | None = None,
    **config: Any,
) -> Path:
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(f"{directory} {steps}".encode())
    described = {"path": f"{directory.parent}/data", "samples": 9, "hash": data}
    write_manifest(
        directory,
        kind="encoder",
        config={
            "output": str(directory), "recipe": {"name": "clip"},
            "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.95]},
            "data": {"sources": [{"path": described["path"], "web_caption": "x", "cache_dir": str(directory)}],
                     "num_workers": len(str(directory))},
            "max_steps": steps, "max_samples": None, "global_batch_size": 8, "precision": "auto", "seed": 0,
            "stages": [],
        } | config,
        seed=config.get("seed", 0),
        data={"sources": [described]},
        parents={"pretrained": begun_with} if begun_with else {},
        stages=[{"steps": steps, "samples_seen": 8 * steps, "seconds": 1.0}],
        precision=precision,
    )  # fmt: skip
    return directory


def put_llava(directory: Path, encoder: Path | str, *, steps: int = 6, seed: int = 0, lr: float = 1e-3) -> Path:
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(str(directory).encode())
    stage = {
        "data": [{"path": "talk.json", "max_samples": None}],
        "max_steps": steps,
        "num_epochs": 1.0,
        "global_batch_size": 4,
        "learning_rate": lr,
    }
    config = {
        "output": str(directory), "stages": ["align"], "encoder": str(encoder), "llm": "org/llm", "seed": seed,
        "align": stage, "instruct": stage | {"learning_rate": directory.name},
        "llm_from_scratch": {"num_hidden_layers": directory.name},
    }  # fmt: skip
    write_manifest(
        directory,
        kind="llava",
        config=config,
        seed=seed,
        data={"align": [{"path": "talk.json", "hash": "e" * 64}], "llm": "c" * 40},
        parents={"encoder": encoder} if Path(encoder).is_dir() else {},
        stages={"align": {"steps": steps, "samples_seen": 4 * steps}},
    )
    return directory


def put_row(results: Path, model: Path | str, benchmark: str = "gqa", digest: str | None = None) -> Path:
    """A result of a model, in a row of its name."""
    name = Path(model).name
    items = items_table(0.1 * len(name), benchmark=benchmark)
    path = put_result(results, name, benchmark, items, model=None if digest else Path(model))
    if digest:
        described = {"model": {"path": str(model), "hash": digest}}
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | described), encoding="utf-8")
    return path


def told(first: Path, second: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    run_diff(DiffConfig(first=str(first), second=str(second)))
    return capsys.readouterr().out.splitlines()


def test_what_differs_is_shown_and_what_is_the_same_is_counted(tmp_path, capsys):
    one = put_encoder(tmp_path / "one")
    two = put_encoder(tmp_path / "two", recipe={"name": "clips"}, seed=1)
    said = told(put_row(tmp_path / "results", one), put_row(tmp_path / "results", two), capsys)
    start = said.index("How they were trained (A against B):")
    assert said[start + 1 : start + 4] == [
        "  recipe.name: clip against clips",
        "  seed: 0 against 1",
        "  the other 9 settings are the same",
    ]  # output, workers, cache and the data's path are none of them
    assert not any("Not trained alike" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"steps": 60}, "steps 6 against 60; samples 48 against 480"),
        ({"global_batch_size": 16}, "global_batch_size 8 against 16"),
        ({"optimizer": {"learning_rate": 2e-3, "betas": [0.9, 0.95]}}, "optimizer.learning_rate 0.001 against 0.002"),
        ({"data": "f" * 64}, "data {0}/data (dddddddddddd) against {0}/data (ffffffffffff)"),
        ({"precision": "fp32"}, "precision bf16 against fp32"),
    ],
)
def test_an_unfair_comparison_is_warned_of(changes, warned, tmp_path, capsys):
    first = put_row(tmp_path / "results", put_encoder(tmp_path / "one"))
    second = put_row(tmp_path / "results", put_encoder(tmp_path / "two", **changes))
    sentence = f"Not trained alike: {warned.format(tmp_path)}. A difference between the numbers may come of that."
    assert sentence in told(first, second, capsys)


def test_the_same_data_elsewhere_are_the_same(tmp_path):
    first, second = put_encoder(tmp_path / "here" / "one"), put_encoder(tmp_path / "there" / "two")
    assert diff_training(read_training(first), read_training(second)).differing == ()
    other = put_encoder(tmp_path / "here" / "three", data="")  # of data without a hash the path decides
    assert diff_training(read_training(first), read_training(other)).differing == ()
    assert len(diff_training(read_training(second), read_training(other)).uneven) == 1


def test_of_a_llava_its_encoder_is_told_too_and_no_stage_that_did_not_run(tmp_path):
    first = put_llava(tmp_path / "one", put_encoder(tmp_path / "eyes"))
    second = put_llava(tmp_path / "two", put_encoder(tmp_path / "other", steps=60), lr=2e-3, seed=3)
    found = diff_training(read_training(first), read_training(second))
    assert [line.partition(":")[0] for line in found.differing] == [
        "encoder", "seed", "align.learning_rate", "encoder.steps", "encoder.samples",
    ]  # fmt: skip
    assert found.uneven == (
        "align.learning_rate 0.001 against 0.002", "encoder.steps 6 against 60", "encoder.samples 48 against 480",
    )  # fmt: skip
    assert read_training(first).main["llm"] == "org/llm (cccccccccccc)"


def test_what_training_began_with_is_weighed_by_how_it_was_trained(tmp_path):
    others = [put_encoder(tmp_path / f"begun{seed}", seed=seed) for seed in (0, 1)]
    others.append(put_encoder(tmp_path / "longer", steps=60))
    first, second, third = (
        read_training(put_encoder(tmp_path / f"from{number}", begun_with=other)) for number, other in enumerate(others)
    )
    assert "model.pretrained.seed: 0 against 1" in diff_training(first, second).differing
    assert diff_training(first, second).uneven == ()
    assert diff_training(first, third).uneven[0] == "model.pretrained.steps 6 against 60"
    (others[0] / "manifest.json").unlink()
    assert diff_training(read_training(tmp_path / "from0"), second).uneven == (
        f"model.pretrained {others[0]} ({directory_hash(others[0])[:12]}) "
        f"against {others[1]} ({directory_hash(others[1])[:12]})",
    )


def test_models_that_were_averaged_are_weighed_by_how_they_were_trained(tmp_path):
    def soup(name: str, **changes: Any) -> Path:
        folders = [put_encoder(tmp_path / name / str(seed), seed=seed, **changes) for seed in (0, 1)]
        made = tmp_path / f"soup-{name}"
        made.mkdir()
        (made / "model.safetensors").write_bytes(name.encode())
        parents = {f"{number} {folder.name}": folder for number, folder in enumerate(folders)}
        write_manifest(made, kind="encoder", config={"output": str(made)}, parents=parents)
        return made

    first, alike, longer = soup("first"), soup("alike"), soup("longer", steps=60)
    assert diff_training(read_training(first), read_training(alike)).uneven == ()
    assert diff_training(read_training(first), read_training(longer)).uneven == (
        "model.0.steps 6 against 60", "model.0.samples 48 against 480",
        "model.1.steps 6 against 60", "model.1.samples 48 against 480",
    )  # fmt: skip


def test_another_llm_is_unfair(tmp_path):
    first, second = (put_llava(tmp_path / name, "timm:net") for name in ("one", "two"))
    manifest = second / "manifest.json"
    manifest.write_text(manifest.read_text().replace("c" * 40, "b" * 40))
    found = diff_training(read_training(first), read_training(second))
    assert found.uneven == ("llm org/llm (cccccccccccc) against org/llm (bbbbbbbbbbbb)",)
    assert found.unknown[0] == "Not known of A: how its encoder was trained (timm:net is no directory on this machine)."


def test_where_nothing_is_known_it_is_said(tmp_path, capsys):
    one = put_row(tmp_path / "results", put_encoder(tmp_path / "one"))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    said = told(one, put_row(tmp_path / "results", theirs), capsys)
    assert f"Not known of B: how it was trained ({theirs} has no manifest of this suite)." in said
    assert not any(line.startswith("How they were trained") for line in said)
    said = told(one, put_row(tmp_path / "results", "org/model", digest="a" * 64), capsys)
    assert "Not known of B: how it was trained (org/model is no directory on this machine)." in said
    said = told(one, put_row(tmp_path / "results", put_encoder(tmp_path / "new"), digest="a" * 64), capsys)
    assert f"Not known of B: how it was trained ({tmp_path}/new holds another model by now)." in said
    (tmp_path / "new/manifest.json").write_text('{"hash": 3, "config": [1], "stages": 7, "data": "x", "parents": [2]}')
    said = f"how it was trained ({tmp_path}/new/manifest.json does not tell)"
    assert (read_training(tmp_path / "new").settings, read_training(tmp_path / "new").unknown) == ({}, (said,))


def test_what_is_said_of_an_encoder_is_said_whole_and_of_the_place_that_was_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = put_encoder(Path("study/encoders/eyes (old)"))
    llava = put_llava(Path("study/llava/one"), encoder)
    (tmp_path / "study").rename(tmp_path / "moved")
    eyes = tmp_path / "moved" / "encoders" / "eyes (old)"
    manifest = json.loads((eyes / "manifest.json").read_text())
    (eyes / "manifest.json").write_text(json.dumps(manifest | {"hash": "9" * 64}))
    (said,) = read_training(tmp_path / "moved" / llava.relative_to("study")).unknown
    assert said == f"how its encoder was trained ({eyes} holds another model by now)"


@pytest.mark.parametrize(
    ("name", "unfair"),
    [
        ("align.data.max_samples", True),
        ("encoder.data.sources.2.split", True),
        ("align.data.format", False),
        ("data.sources.image_column", False),
    ],
)
def test_a_part_of_the_same_data_is_other_data(name, unfair):
    one, two = (
        TrainingSettings(
            settings={name: TrainingSetting(text=text, weighs=is_confounder(name)), "seed": TrainingSetting(text="0")}
        )
        for text in ("not set", "100")
    )
    assert bool(diff_training(one, two).uneven) is unfair


def test_a_length_is_told_once_and_a_part_of_the_data_is_no_length(tmp_path):
    trained = put_llava(tmp_path / "one", "org/eyes")
    manifest = json.loads((trained / "manifest.json").read_text(encoding="utf-8"))
    for stages in (manifest["stages"], {}):  # of a study's step whose model is gone only the config is known
        (trained / "manifest.json").write_text(json.dumps(manifest | {"stages": stages}), encoding="utf-8")
        settings = read_training(trained).settings
        assert settings["align.steps"].text == "6"
        assert settings["align.steps"].weighs
        assert {"align.max_steps", "align.data.samples"}.isdisjoint(settings)
        assert settings["align.data.max_samples"].text == "not set"


def test_a_study_that_was_moved_is_read_where_it_is(tmp_path, monkeypatch):
    study = tmp_path / "runs/demo"
    monkeypatch.chdir(tmp_path)
    model = put_llava(Path("runs/demo/llava/one"), put_encoder(Path("runs/demo/encoders/eyes")))
    put_row(study / "results", model)
    study.rename(tmp_path / "moved")
    put_encoder(Path("runs/demo/encoders/eyes"), steps=60)  # another in the old place
    for folder in (Path("/"), tmp_path):
        monkeypatch.chdir(folder)
        settings = training_of_result(read_result(tmp_path / "moved/results/one/gqa.json")).settings
        assert settings["align.steps"].text == settings["encoder.steps"].text == "6"
    monkeypatch.chdir(tmp_path / "moved/results/one")
    assert training_of_result(read_result(Path("../one/gqa.json"))).settings == settings
    for folder in (tmp_path / "moved/results", tmp_path):
        monkeypatch.chdir(folder)
        (model,) = trace(read_result(tmp_path / "moved/results/one/gqa.json")).made_from
        assert model.title.startswith(f"model: {tmp_path}/moved/llava/one")
        assert model.made_from[0].title.startswith(f"encoder: {tmp_path}/moved/encoders/eyes")
        assert "CHANGED" not in model.title + model.made_from[0].title


def test_a_model_that_is_gone_is_told_by_its_step(tmp_path):
    put_row(tmp_path / "study/results", put_encoder(tmp_path / "study/encoders/one"))
    shutil.rmtree(tmp_path / "study/encoders")
    record = StepRecord(
        name="encoder-one",
        kind="encoder",
        command="",
        key="",
        status="done",
        started=1.0,
        output_paths=("encoders/one",),
    )
    write_record(tmp_path / "study", record)
    config = step_directory(tmp_path / "study", "encoder-one") / "config.yaml"
    config.write_text("{data: {sources: [{path: x/data}]}, global_batch_size: 16, output: y}", encoding="utf-8")
    found = training_of_result(read_result(tmp_path / "study/results/one/gqa.json"))
    assert {name: each.text for name, each in found.settings.items()} == {
        "global_batch_size": "16", "data": "x/data",  # the seed was left to the default, which is not stated
    }  # fmt: skip


def test_a_comparison_tells_it_once_for_all_benchmarks(tmp_path, capsys):
    one, two = put_encoder(tmp_path / "one"), put_encoder(tmp_path / "other", steps=60, ema_decay=0.5)
    for model in (one, two):
        for benchmark in ("gqa", "pope"):
            put_row(tmp_path / "results", model, benchmark)
    paths = {"first": str(tmp_path / "results/one"), "second": str(tmp_path / "results/other")}
    assert build_comparison(CompareConfig(**paths)).trained() == [
        "one against other on gqa and pope: trained (A against B): steps 6 against 60; samples 48 against 480; the "
        "other 9 settings are the same, 1 more stated of one alone.",
        "one against other on gqa and pope: Not trained alike: steps 6 against 60; samples 48 against 480. A "
        "difference between the numbers may come of that.",
    ]
    compare(CompareConfig(**paths, output=str(tmp_path / "x.json")))
    assert " ".join(capsys.readouterr().out.split()).count("Not trained alike: ") == 1
    line = json.loads((tmp_path / "x.json").read_text())[0]
    assert line["uneven_training"] == "steps 6 against 60; samples 48 against 480"
    assert line["training"].startswith(line["uneven_training"])
    compare(CompareConfig(first=paths["first"], second=paths["first"], output=str(tmp_path / "x.json")))
    assert json.loads((tmp_path / "x.json").read_text())[0]["training"] is None


def test_a_report_names_rows_that_had_more_training(tmp_path):
    for name, steps in (("one", 6), ("more", 60), ("much", 60)):
        encoder = put_encoder(tmp_path / name, steps=steps)
        put_row(tmp_path / "results", encoder, "retrieval")
        put_row(tmp_path / "results", put_llava(tmp_path / "llava" / name, encoder))
    report = build_report(tmp_path / "results", baseline="one")
    notes = table_notes(report.source, report.table, report.table)
    assert (
        "more and much were not trained like one: encoder.steps 60 against 6; encoder.samples 480 against 48. A "
        "difference between the numbers may come of that."
    ) in notes
