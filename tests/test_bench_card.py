"""Model cards with what was measured: the hub's own classes read them, and nothing is said that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from report_material import edit, items_table, put_failure, put_result
from report_study import make_study

from benchmarks.analysis.diff_command import DiffConfig, run_diff
from benchmarks.publishing.model_card import CardConfig, run_card
from clips.core.artifact import directory_hash, write_manifest
from clips.errors import UserError

NASTY = "<script>x</script> | a_b `c` \x1b[31m"


def make_model(directory: Path, **details: Any) -> Path:
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    write_manifest(directory, kind="llava", config={}, seed=3, **details)
    return directory


def put_own(results: Path, model: Path, benchmark: str, **changes: Any) -> None:
    """A result of ``model``."""
    path = put_result(results, "row", benchmark, items_table(0.5, benchmark=benchmark), model=model)
    edit(path, **changes)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    found = make_model(tmp_path / "model", license="mit", stages={"align": {"steps": 5, "samples_seen": 40, "loss": 2}})
    put_own(tmp_path / "results", found, "pope")
    put_own(tmp_path / "results", found, "gqa", missing_metrics={"meteor": f"no Java {NASTY}"})
    return found


def fill(model: Path, **changes: Any) -> ModelCard:
    run_card(CardConfig(directory=str(model), results=str(model.parent / "results"), **changes))
    return ModelCard.load(model / "README.md")


def test_the_hub_reads_the_numbers(model: Path) -> None:
    written = fill(model, model_name="Mine")
    found = {entry.metric_type: entry for entry in written.data.eval_results}
    assert set(found) == {"accuracy", "exact_match"}
    result = json.loads((model.parent / "results/row/pope.json").read_text(encoding="utf-8"))
    metric = result["metrics"]["accuracy"]
    accuracy = found["accuracy"]
    assert accuracy.metric_value == pytest.approx(100 * metric["value"], abs=1e-4)
    assert accuracy.metric_args["interval_95"] == pytest.approx(
        [100 * metric["ci_low"], 100 * metric["ci_high"]], abs=1e-3
    )
    assert (accuracy.metric_args["items"], accuracy.metric_args["protocol"]) == (120, result["fingerprint"])
    assert (accuracy.dataset_name, accuracy.task_type) == ("pope", "image-text-to-text")
    assert (written.data.model_name, written.data.license, written.data.library_name) == ("Mine", "mit", "transformers")


def unpadded(text: str) -> str:
    return re.sub(" +", " ", text)


def test_the_table_lists_results_and_missing_ones(model: Path) -> None:
    put_failure(model.parent / "results", "row", "mme", "out of memory")
    edit(model.parent / "results/row/mme.json", model={"path": "", "hash": directory_hash(model)})
    text = unpadded(fill(model).text)
    result = json.loads((model.parent / "results/row/pope.json").read_text(encoding="utf-8"))
    value, low, high = (f"{100 * result['metrics']['accuracy'][name]:.1f}" for name in ("value", "ci_low", "ci_high"))
    assert f"| pope | accuracy | {value} [{low}, {high}] | 120 | `{result['fingerprint'][:12]}` |" in text
    assert f"| model | `{directory_hash(model)[:12]}` |" in text
    assert "- mme: failed (out of memory)" in text
    assert "- gqa, meteor: no Java &lt;script&gt;" in text
    assert "| data hash | abc |" in text
    assert "| data | not stated |" in text
    assert "| align.steps | 5 |\n" in text
    assert "| align.samples | 40 |" in text
    assert "| align, loss at its end | 2.000 |" in text
    assert not [raw for raw in ("<script>", "\x1b") if raw in text]


def test_text_of_a_card_stays_and_old_numbers_are_removed(model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- mine\n---\n# Title\n\nProse.\n")
    first = str(fill(model))
    assert "Prose." in first
    assert "| pope | accuracy |" in unpadded(first)
    (model.parent / "results/row/pope.json").unlink()
    again = fill(model)
    assert (again.data.license, again.data.tags) == ("apache-2.0", ["mine"])
    assert "pope" not in str(again)
    assert str(again).count("## Evaluation") == 1
    assert str(fill(model)) == str(again)


def test_results_of_other_models_are_rejected(model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match=r"^results: none of the 2 results in .+ is of .+other"):
        run_card(CardConfig(directory=str(other), results=str(tmp_path / "results")))
    assert not (other / "README.md").exists()


def test_out_of_date_results_are_omitted_or_rejected(tmp_path, monkeypatch, capsys):
    study, model = make_study(tmp_path, monkeypatch), make_model(tmp_path / "model")
    described = {"path": str(model), "hash": directory_hash(model)}
    for name in ("clip-s0/retrieval", "clip-tiny-s0/pope", "clips-tiny-s0/pope"):
        edit(study / f"results/{name}.json", model=described)
    put_own(study / "results", model, "gqa")  # in a row that the study does not have
    config = CardConfig(directory=str(model), results=str(study))
    edit(study / "steps/evaluate-llava-clip-tiny-s0/step.json", key="of an older study")
    run_card(config)
    said, text = capsys.readouterr().err, ModelCard.load(model / "README.md").text
    assert "with pope, retrieval\n" in said or "with retrieval, pope\n" in said
    assert "skipped: pope: out of date (not run since the study or the version of its command changed)\n" in said
    assert "- pope: out of date (not run since the study or the version of its command changed)" in text
    assert "- gqa: out of date (the study no longer contains its model)" in text
    assert unpadded(text).count("| pope | accuracy |") == 1
    old = str(study / "results/clip-tiny-s0")
    run_diff(DiffConfig(first=old, second=str(study / "results/clips-tiny-s0"), benchmark="pope"))
    assert (
        "A is out of date: not run since the study or the version of its command changed.\n" in capsys.readouterr().out
    )
    (model / "README.md").unlink()
    for name in ("encoder-clip-s0", "llava-clips-tiny-s0"):
        edit(study / f"steps/evaluate-{name}/step.json", key="of an older study")
    with pytest.raises(UserError, match=r"^results: .+ nothing of .+model is up to date: .*pope: out of date \(not"):
        run_card(config)
    assert not (model / "README.md").exists()
