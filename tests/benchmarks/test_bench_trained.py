"""How models were trained: what `compare` and reports say of it, and when they warn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_material import edit, items_table, put_result

from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.report.notes import table_notes
from benchmarks.report.report import build_report
from benchmarks.report.training_settings import TrainingSettings, diff_training, training_of_result
from benchmarks.results.results import read_result
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
            "optimizer": {"learning_rate": 1e-3, "adam_beta2": 0.95},
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


def put_llava(
    directory: Path, encoder: Path | str, *, steps: int = 6, seed: int = 0, lr: float = 1e-3, limit: int | None = None
) -> Path:
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(str(directory).encode())
    stage = {
        "data": [{"path": "talk.json", "max_samples": limit}],
        "steps": steps,
        "num_epochs": 1.0,
        "global_batch_size": 4,
    }
    stage["learning_rate"] = lr
    config = {
        "output": str(directory), "stages": ["align"], "encoder": str(encoder), "llm": "org/llm", "seed": seed,
        "align": stage, "instruct": stage | {"learning_rate": directory.name},
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
        edit(path, model={"path": str(model), "hash": digest})
    return path


def read_training(model: Path) -> TrainingSettings:
    return training_of_result(read_result(put_row(model.parent / "results", model)))


def compared(first: Path, second: Path) -> list[str]:
    return build_comparison(CompareConfig(first=str(first), second=str(second))).texts


def test_differences_are_listed_and_equal_settings_counted(tmp_path):
    one = put_encoder(tmp_path / "one")
    two = put_encoder(tmp_path / "two", recipe={"name": "clips"}, seed=1)
    notes = compared(put_row(tmp_path / "results", one), put_row(tmp_path / "results", two))
    settings = "recipe.name clip against clips; seed 0 against 1; the other 9 settings are the same"
    assert f"one and two: trained (A against B): {settings}." in notes  # no output, workers, cache, path of the data
    assert not any("trained with different settings" in note for note in notes)


def test_a_setting_that_is_newer_than_a_training_had_its_default(tmp_path):
    rate = {"learning_rate": 1e-3, "adam_beta2": 0.95}
    schedules = {"older": {}, "cosine": {"schedule": "cosine"}, "wsd": {"schedule": "wsd"}}
    encoders = {name: put_encoder(tmp_path / name, optimizer=rate | more) for name, more in schedules.items()}
    for encoder in encoders.values():
        manifest = json.loads((encoder / "manifest.json").read_text())
        (encoder / "manifest.json").write_text(json.dumps(manifest | {"identity": {"seed": 0}}))  # of this suite's runs
    older, cosine, wsd = map(read_training, encoders.values())
    same, other = diff_training(older, cosine), diff_training(older, wsd)
    assert (same.differing, same.one_sided) == ((), 0)
    assert (other.differing, other.one_sided) == (("optimizer.schedule: cosine against wsd",), 0)


def test_a_limit_of_the_data_is_not_the_length_of_the_training(tmp_path):
    settings = read_training(put_llava(tmp_path / "llava", "org/encoder", limit=5)).settings
    assert (settings["align.data.max_samples"].text, settings["align.samples"].text) == ("5", "24")
    assert settings["align.data.max_samples"].is_confounder


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"steps": 60}, "steps 6 against 60; samples 48 against 480"),
        ({"global_batch_size": 16}, "global_batch_size 8 against 16"),
        ({"optimizer": {"learning_rate": 2e-3, "adam_beta2": 0.95}}, "optimizer.learning_rate 0.001 against 0.002"),
        ({"data": "f" * 64}, "data {0}/data (dddddddddddd) against {0}/data (ffffffffffff)"),
        ({"precision": "fp32"}, "precision bf16 against fp32"),
    ],
)
def test_an_unfair_comparison_is_warned_of(changes, differences, tmp_path):
    first = put_row(tmp_path / "results", put_encoder(tmp_path / "one"))
    second = put_row(tmp_path / "results", put_encoder(tmp_path / "two", **changes))
    (warning,) = (note for note in compared(first, second) if "were trained with different settings" in note)
    assert differences.format(tmp_path) in warning
    assert warning.endswith("This may explain a difference between the numbers.")


def test_the_same_data_elsewhere_are_the_same(tmp_path):
    first, second = put_encoder(tmp_path / "here" / "one"), put_encoder(tmp_path / "there" / "two")
    assert diff_training(read_training(first), read_training(second)).differing == ()
    other = put_encoder(tmp_path / "here" / "three", data="")  # of data without a hash the path decides
    assert diff_training(read_training(first), read_training(other)).differing == ()
    assert len(diff_training(read_training(second), read_training(other)).uneven) == 1


def test_a_llava_reports_its_encoder_and_only_stages_that_ran(tmp_path):
    first = put_llava(tmp_path / "one", put_encoder(tmp_path / "eyes"))
    second = put_llava(tmp_path / "two", put_encoder(tmp_path / "other", steps=60), lr=2e-3, seed=3)
    found = diff_training(read_training(first), read_training(second))
    assert [line.partition(":")[0] for line in found.differing] == [
        "encoder", "seed", "align.learning_rate", "encoder.steps", "encoder.samples",
    ]  # fmt: skip
    assert found.uneven == (
        "align.learning_rate 0.001 against 0.002", "encoder.steps 6 against 60", "encoder.samples 48 against 480",
    )  # fmt: skip
    assert read_training(first).settings["llm"].describe() == "org/llm (cccccccccccc)"


def test_a_llava_that_was_trained_further_has_the_encoder_and_llm_of_its_start(tmp_path):
    eyes = [put_encoder(tmp_path / name) for name in ("eyes", "other")]
    start, other = put_llava(tmp_path / "start", eyes[0]), put_llava(tmp_path / "direct", eyes[1])
    further = tmp_path / "further"
    further.mkdir()
    config = {"llava": str(start), "encoder": None, "llm": None, "seed": 1}
    write_manifest(further, kind="llava", config=config, seed=1, parents={"llava": start})
    found = diff_training(read_training(further), read_training(other))
    named = dict(line.split(": ", 1) for line in found.differing)
    assert named["encoder"].startswith(f"{eyes[0]} (")
    assert "llm" not in named  # the same
    assert found.unknown == ()
    alone = diff_training(
        TrainingSettings(settings={"seed": read_training(further).settings["seed"]}), read_training(other)
    )
    assert alone.rest.startswith(f"{alone.one_sided} are known of one training only")  # none is the same
    (start / "manifest.json").unlink()
    assert "encoder" not in read_training(further).settings
    assert read_training(further).unknown == (f"how its llava was trained ({start} has no manifest of this suite)",)


def test_pretrained_weights_are_compared_by_their_own_training(tmp_path):
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


def test_a_report_names_rows_that_had_more_training(tmp_path):
    for name, steps in (("one", 6), ("more", 60), ("much", 60)):
        encoder = put_encoder(tmp_path / name, steps=steps)
        put_row(tmp_path / "results", encoder, "retrieval")
        put_row(tmp_path / "results", put_llava(tmp_path / "llava" / name, encoder))
    report = build_report(tmp_path / "results", baseline="one")
    notes = [note.text for note in table_notes(report.source, report.table, report.table)]
    assert (
        "more and much and one were trained with different settings: encoder.steps 60 against 6; "
        "encoder.samples 480 against 48. "
        "This may explain a difference between the numbers."
    ) in notes
