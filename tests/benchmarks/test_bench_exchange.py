"""Results of lmms-eval, from files that its own code wrote, and published numbers."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import bench_world as world
import pandas as pd
import pytest
from report_material import items_table, put_result, rendered

from benchmarks import cli
from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.analysis.provenance import trace
from benchmarks.exchange import lmms_eval
from benchmarks.exchange.import_command import ImportConfig, run_import
from benchmarks.exchange.item_table import read_item_tables
from benchmarks.report.report import build_report
from benchmarks.results.result_types import Result
from benchmarks.results.results import read_items, read_results, result_path
from clips.commandline.commands import dispatch
from clips.errors import UserError

LMMS = Path(__file__).parent / "peer_files/lmms_eval/20261123_225014_results.json"

pytestmark = world.LMMS_EVAL_WARNS


def command(*arguments: str | Path) -> int:
    return dispatch("clips-bench", "", cli.COMMANDS, [*map(str, arguments)])


def run(*files: Path | str, output: Path, **more: Any) -> dict[str, Result]:
    """Benchmark → its result, as it is read back."""
    run_import(ImportConfig(files=tuple(map(str, files)), output=str(output), **more))
    return {result.benchmark: result for result in read_results(output)}


def changed(file: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of a file with another text."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    folder.mkdir(exist_ok=True)
    copy = folder / file.name
    copy.write_text(text.replace(old, new), encoding="utf-8")
    return copy


def test_lmms_evals_numbers_and_items(tmp_path: Path) -> None:
    written = run(LMMS, output=tmp_path)
    theirs = json.loads(LMMS.read_text(encoding="utf-8"))["results"]
    compared = 0
    for task, numbers in theirs.items():
        for key, value in numbers.items():
            name = key.removesuffix(",none")
            if isinstance(value, float) and "_stderr" not in name:
                assert written[task].metrics[name].value == value, (task, name)
                compared += 1
    assert compared == 15
    pope = written["pope"].metrics["pope_f1_score"]
    assert pope.ci_method == "wilson"
    assert pope.ci_low < pope.value < pope.ci_high
    assert read_items(written["pope"])["prediction"].tolist().count("Yes") == 8
    assert written["mme"].metrics["mme_perception_score"].clusters == 6  # the file names the images of MME
    assert written["mme"].metrics["mme_total"].value == 300.0
    assert written["nocaps_val"].items is None
    assert written["nocaps_val"].metrics["nocaps_CIDEr"].ci_low is None
    assert {result.measured_elsewhere["tool"] for result in written.values()} == {"lmms-eval"}


def test_metrics_that_another_version_names_otherwise_are_imported(tmp_path: Path, capsys) -> None:
    """lmms-eval's mmstar also returns each ability; its mme said ``mme_percetion_score`` before."""
    folder = shutil.copytree(LMMS.parent, tmp_path / "in")
    for file in folder.glob("2*"):
        text = file.read_text(encoding="utf-8").replace("perception", "percetion")
        text = text.replace('"pope_recall,none"', '"pope_ability,none": 0.25, "flops,flops": 7e12, "pope_recall,none"')
        file.write_text(text.replace('"metric": "pope_recall"', '"metric": "pope_ability"'), encoding="utf-8")
    written = run(folder / LMMS.name, output=tmp_path / "r")
    ability, recall = (written["pope"].metrics[f"pope_{name}"] for name in ("ability", "recall"))
    assert (ability.value, ability.scale, ability.label, ability.ci_low) == (0.25, 100, "pope ability", None)
    assert ability.n == recall.n > 0
    assert recall.ci_low is not None
    assert "pope: not imported, as the task does not define them as metrics: flops" in capsys.readouterr().err
    mme, theirs = written["mme"], json.loads(LMMS.read_text(encoding="utf-8"))["results"]["mme"]
    assert mme.metrics["mme_perception_score"].value == theirs["mme_perception_score,none"]
    assert mme.metrics["mme_perception_score"].ci_low is not None
    assert "mme_percetion_score" not in mme.metrics
    assert tuple(mme.primary) == ("mme_total",)


def test_files_of_an_earlier_version_without_samples(tmp_path: Path) -> None:
    """Version 0.1's: ``results.json``, its metrics' directions in the configs only, the model in its arguments only.

    adallava's fork adds what it measured of time and memory, as in its README.
    """
    content = json.loads(LMMS.read_text(encoding="utf-8"))
    kept = {key: content[key] for key in ("results", "configs", "versions", "n-shot", "config", "date")}
    mme = {"alias": "mme", "flops,flops": 7239070670529.51, "flops_stderr,flops": "N/A",
           "prefill_time,prefill_time": 0.068719,
           "mme_cognition_score,none": 324.6428571428571, "mme_cognition_score_stderr,none": "N/A",
           "mme_percetion_score,none": 1487.19037615046, "mme_percetion_score_stderr,none": "N/A"}  # fmt: skip
    kept["results"] |= {"mme": mme}
    for name, arguments in (("a", "pretrained=llava-a"), ("b", "model_version=gpt-4o"), ("c", ""), ("d", "")):
        kept["config"] = {"model": "gpt4v", "model_args": arguments}
        kept["date"] = f"0410_121{'01'[name == 'd']}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(kept), encoding="utf-8")
    run(*tmp_path.glob("?/results.json"), output=tmp_path / "r")
    found = read_results(tmp_path / "r")
    assert {result.model_name for result in found} == {"llava-a", "gpt-4o", "gpt4v-0410_1210", "gpt4v-0410_1211"}
    mme = next(result for result in found if result.benchmark == "mme")
    assert mme.primary == ["mme_total"]
    assert mme.metrics["mme_total"].value == pytest.approx(324.6428571428571 + 1487.19037615046)
    assert mme.metrics.keys() == {"mme_perception_score", "mme_cognition_score", "mme_total"}
    gqa = next(result for result in found if result.benchmark == "gqa")
    assert gqa.metrics["exact_match"].higher_is_better
    (tmp_path / "a/gqa.json").write_text(
        json.dumps({"args": {}, "logs": [
            {"doc_id": number, "doc": {"question": "What color?", "answer": "red"}, "target": "red", "doc_hash": "x",
             "arguments": [["What color?", {}]], "resps": [["red"]], "filtered_resps": ["red" if number else ""],
             "exact_match": float(number > 0)} for number in range(3)]}), encoding="utf-8",
    )  # fmt: skip
    gqa = run(tmp_path / "a/results.json", output=tmp_path / "s")["gqa"]
    assert read_items(gqa)["score"].tolist() == [0.0, 1.0, 1.0]
    assert gqa.metrics["unread"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("setting", "stated"),
    [
        ({"config": {"offset": 4}}, {"offset": "4", "questions": 8, "full_size": 12}),
        ({"system_instruction": "Be brief."}, {"system_instruction": "Be brief."}),
        ({"config": {"resolved_cli_args": {"reasoning_tags": "none"}}}, {"reasoning_tags": "none"}),
    ],
)
def test_a_run_under_other_settings_is_another_protocol(setting: Any, stated: dict[str, Any], tmp_path: Path) -> None:
    content = json.loads(LMMS.read_text(encoding="utf-8"))
    file = tmp_path / LMMS.name
    config = content["config"] | setting.get("config", {})
    file.write_text(json.dumps(content | setting | {"config": config}), encoding="utf-8")
    whole, part = (run(each, output=tmp_path / name)["pope"] for each, name in ((LMMS, "whole"), (file, "part")))
    changed = {name: value for name, value in part.protocol.items() if whole.protocol.get(name) != value}
    assert changed == stated
    assert part.fingerprint != whole.fingerprint
    assert part.metrics["pope_accuracy"].n == stated.get("questions", 12)


def test_without_samples_the_printed_standard_error_counts(tmp_path: Path) -> None:
    written = run(shutil.copy(LMMS, tmp_path), output=tmp_path / "r")
    numbers = json.loads(LMMS.read_text(encoding="utf-8"))["results"]["gqa"]
    gqa, error = written["gqa"].metrics["exact_match"], numbers["exact_match_stderr,none"]
    assert gqa.ci_method == "printed"
    assert gqa.ci_low == pytest.approx(gqa.value - 1.96 * error, abs=1e-4)
    assert gqa.ci_high == 1.0  # cut off at the largest value
    assert gqa.n == 6
    assert written["gqa"].measured_elsewhere["intervals"] == "the printed standard error"
    # lmms-eval prints the same "clt" error for POPE's accuracy, precision and F1
    assert written["pope"].metrics["pope_f1_score"].ci_low is None


def test_a_standard_error_of_another_answer_filter_is_not_used(tmp_path: Path) -> None:
    old = '"exact_match_stderr,none": 0.210818510677892'
    new = '"exact_match_stderr,none": "N/A", "exact_match,flexible": 0.9, "exact_match_stderr,flexible": 0.1'
    gqa = run(changed(LMMS, tmp_path / "in", old, new), output=tmp_path / "r")["gqa"].metrics["exact_match"]
    assert gqa.value == pytest.approx(2 / 3)
    assert gqa.ci_low is None


def results_of(folder: Path, numbers: dict[str, Any], *, task: str = "t", **more: Any) -> Path:
    """A run of a task with these numbers, as lmms-eval writes it."""
    names = dict.fromkeys(key.partition(",")[0] for key in numbers if "_stderr" not in key)
    listed = [{"metric": name, "aggregation": "mean", **more} for name in names]
    content = {"results": {task: numbers}, "configs": {task: {"metric_list": listed}}, "model_name": "m"}
    folder.mkdir(exist_ok=True)
    (folder / "1_results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "1_results.json"


def test_of_several_answer_filters_the_first_is_imported_as_its_own_protocol(tmp_path: Path, capsys) -> None:
    plain, strict = {"acc,none": 0.4}, {"acc,strict": 0.5, "acc,flexible": 0.7, "acc_stderr,flexible": 0.1}
    one = run(results_of(tmp_path / "a", plain), output=tmp_path / "r")["t"]
    assert capsys.readouterr().err.count("not imported") == 0
    other = run(results_of(tmp_path / "b", strict), output=tmp_path / "s")["t"]
    assert "not imported: acc,flexible (as acc has several answer filters, that of 'strict'" in capsys.readouterr().err
    assert (one.metrics["acc"].value, other.metrics["acc"].value) == (0.4, 0.5)
    assert "answer_filter" not in one.protocol
    assert json.loads(other.protocol["answer_filter"]) == {"acc": "strict"}
    samples = [{"doc_id": n, "filter": name, "acc": float(name == "flexible"), "filtered_resps": ["x"], "target": "x"}
               for name in ("flexible", "strict") for n in range(4)]  # fmt: skip
    (tmp_path / "b/1_samples_t.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    other = run(tmp_path / "b/1_results.json", output=tmp_path / "s")["t"]
    said = capsys.readouterr().err
    assert "4 samples of the answer filter 'flexible' are not used" in said
    assert "t: acc is 0.5, but 0 by its samples: imported without an interval" in said
    assert read_items(other)["score"].tolist() == [0.0] * 4


def test_what_is_no_number_is_named(tmp_path: Path, capsys) -> None:
    numbers = {"alias": "t", "acc,none": 0.4, "by_kind,none": {"a": 1}, "bad,none": float("nan"), "file,none": None}
    found = run(results_of(tmp_path / "a", numbers), output=tmp_path / "r")["t"]
    assert found.metrics.keys() == {"acc"}
    said = capsys.readouterr().err
    assert 'by_kind,none (no number: {"a": 1}), bad,none (no number: NaN)\n' in said


def test_neither_direction_is_better_if_the_file_says_so(tmp_path: Path) -> None:
    known = {up: run(results_of(tmp_path / str(up), {"acc,none": 0.4}, higher_is_better=up), output=tmp_path / f"r{up}")
             for up in (True, False, None)}  # fmt: skip
    assert {up: found["t"].metrics["acc"].higher_is_better for up, found in known.items()} == {
        True: True, False: False, None: None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "metric", "value", "said"),
    [
        ("mmvet", "gpt_eval_score", 0.31, "mmvet: gpt_eval_score: 0.31 may be a ratio or per cent"),
        ("mmvet", "gpt_eval_score", 310.0, "mmvet: gpt_eval_score: expected 0 to 100, got 310"),
        ("llava_in_the_wild", "gpt_eval_llava_all", 0.6, "0.6 may be a ratio"),
        ("mme", "mme_perception_score", 0.72, "0.72 may be a ratio"),
        ("nocaps_val", "nocaps_CIDEr", 105.0, "nocaps_CIDEr: expected 0 to 10, got 105"),
        ("pope", "pope_accuracy", 86.7, "pope_accuracy: expected 0 to 1, got 86.7"),
    ],
)
def test_every_known_range_is_checked(task: str, metric: str, value: float, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        run(results_of(tmp_path / "a", {f"{metric},none": value}, task=task), output=tmp_path / "r")


@pytest.mark.parametrize("name", ["NA", "007", "1.10", "模型一", "हिन्दी", "_x", "on", "1e5"])
def test_names_of_models_keep_what_they_are(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(f"{OWN}{name},pope,pope_accuracy,86.7,,,,,our paper\n", encoding="utf-8")
    run_import(ImportConfig(files=(str(file),), output=str(tmp_path / "r")))
    (result,) = read_results(tmp_path / "r")
    assert result.model_name == name
    csv = rendered(build_report(tmp_path / "r"), "csv")
    assert f'\n"{name}",' in csv
    assert pd.read_csv(io.StringIO(csv), dtype={"model": str}, keep_default_na=False)["model"].tolist() == [name]


def test_a_name_without_a_letter_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(f"{OWN}../…,pope,pope_accuracy,86.7,,,,,our paper\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"mine.csv line 2: model: expected a name with letters or digits, got '\.\./…'"
    ):
        run_import(ImportConfig(files=(str(file),), output=str(tmp_path / "r")))


def test_the_interval_of_an_unlisted_tasks_ratio_ends_at_1(tmp_path: Path) -> None:
    """A result with a ratio above 1 could not be read back."""
    metric = run(changed(LMMS, tmp_path / "in", '"gqa"', '"gqa_of_mine"'), output=tmp_path / "r")["gqa_of_mine"]
    assert metric.metrics["exact_match"].ci_high == 1.0


def test_cider_of_an_unlisted_task_is_not_scaled_nor_averaged(tmp_path: Path) -> None:
    """Of two models with CIDEr below and above 1 one was rejected for its scale; of two below 1 CIDEr was averaged."""
    numbers = {"textcaps_val": "textcaps_CIDEr", "gqa": "exact_match", "mmstar": "average"}
    for model, cider in (("weak", 0.3), ("good", 0.97), ("best", 1.08)):
        values = {"textcaps_CIDEr": cider, "exact_match": 0.6, "average": 0.5}
        content = {
            "results": {task: {f"{metric},none": values[metric]} for task, metric in numbers.items()},
            "configs": {task: {"metric_list": [{"metric": metric}]} for task, metric in numbers.items()},
            "model_name": model,
        }
        (tmp_path / f"{model}.json").write_text(json.dumps(content))
    run(*sorted(tmp_path.glob("*.json")), output=tmp_path / "r")
    report = build_report(tmp_path / "r")
    (column,) = (each for each in report.table.columns if "caps" in each.benchmark)
    assert {cell.row: cell.value for cell in report.table.cells(column)} == {"weak": 0.3, "good": 0.97, "best": 1.08}
    (overall,) = report.overall
    assert overall.averaged == ("gqa", "mmstar")


def test_samples_of_another_run_are_an_error(tmp_path: Path) -> None:
    shutil.copy(LMMS, tmp_path)
    samples = LMMS.with_name("20261123_225014_samples_gqa.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "20261123_225014_samples_gqa.jsonl").write_text("\n".join(samples[:-1]))
    with pytest.raises(UserError, match=r"samples_gqa\.jsonl: expected 6 questions, as the results state, got 5"):
        lmms_eval.read(tmp_path / LMMS.name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"n-samples": {', '"n-samples": 3, "other": {', "n_samples: expected a mapping"),
        ('"results": {', '"results": {"gqa": 3}, "other": {', "results.gqa: expected a mapping"),
        ('"metric_list": [', '"metric_list": 1.5, "other": [', "expected a list in configs."),
        ('"effective": 6', '"effective": "6"', "n_samples.nocaps_val.effective: expected an integer"),
        ('"pope_accuracy,none": 0.', '"pope_accuracy,none": 50.', "pope: pope_accuracy: expected 0 to 1"),
    ],
)
def test_bad_files_are_one_line_errors(
    tmp_path: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = changed(LMMS, tmp_path / "in", old, new)
    assert command("import", broken, "--output", tmp_path / "r") == 2
    *others, line = capsys.readouterr().err.strip().splitlines()
    assert all("mmmu_val: not imported: mmmu_acc_pass_at_k,none (no number: [])" in each for each in others)
    assert str(broken) in line
    assert message in line
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", ["{}", "[1]", "not json", "", "{1: 2}", '{"dataset": 1, "results": '])
def test_other_files_are_one_line_errors(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in ("json", "jsonl", "yaml", "csv", "xlsx", "txt"):
        file = tmp_path / f"x.{suffix}"
        file.write_text(content)
        assert command("import", file, "--output", tmp_path / "r") == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_an_import_in_the_place_of_another_files_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run(LMMS, output=tmp_path / "r")
    assert "replaces" not in capsys.readouterr().err
    other = changed(LMMS, tmp_path / "in", "main@d3ef69ff", "main@00000000")
    run(other, output=tmp_path / "r")
    assert f"r/places0-llava/pope.json: replaces the import of {LMMS.name}" in capsys.readouterr().err


def test_an_own_result_is_not_replaced(tmp_path: Path) -> None:
    put_result(tmp_path, "mine", "pope", items_table(0.5, benchmark="pope"))
    before = result_path(tmp_path, "mine", "pope").read_bytes()
    with pytest.raises(UserError, match="measured by this suite"):
        run(LMMS, output=tmp_path, model_name="mine")
    assert result_path(tmp_path, "mine", "pope").read_bytes() == before
    assert [path.name for path in (tmp_path / "mine").glob("*.json")] == ["pope.json"]
    for _ in range(2):  # an imported one is
        run(LMMS, output=tmp_path, model_name="theirs")
    with pytest.raises(UserError, match="expected one result of 'm' on 'b'"):
        run(LMMS, output=tmp_path, model_name="m", benchmark="b")


def test_the_report_marks_imports_and_tests_them_only_on_equal_items(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(LMMS, output=tmp_path, model_name=name)
    put_result(tmp_path, "ours", "pope", items_table(0.5, benchmark="pope"))
    report = build_report(tmp_path)
    (note,) = [note for note in report.texts if note.startswith("§")]
    assert "by lmms-eval" in note
    assert {cell.row for cell in report.table.scores if cell.measured_elsewhere} == {"a", "b"}
    assert {frozenset({each.cell.row, each.other.row}) for each in report.table.differences} == {
        frozenset({"a", "b"})
    }  # never with ours
    for table in (tmp_path / "b").glob("*.items.parquet"):
        items = pd.read_parquet(table)
        items.assign(item=["x" + name for name in items["item"]]).to_parquet(table)
    assert build_report(tmp_path).table.differences == []


def test_an_import_without_a_hash_is_no_known_model_and_was_not_evaluated_here(tmp_path: Path) -> None:
    """Two papers' models were "the same ()", and their numbers "evaluated in 0 s"."""
    file = tmp_path / "mine.csv"
    file.write_text(OWN + "one,pope,pope_accuracy,86.7,,,,,our paper\ntwo,pope,pope_accuracy,80,,,,,our paper\n")
    run_import(ImportConfig(files=(str(file),), output=str(tmp_path / "r")))
    one, _two = read_results(tmp_path / "r")
    notes = build_comparison(CompareConfig(first=str(tmp_path / "r/one"), second=str(tmp_path / "r/two"))).texts
    assert "one and two: it is unknown whether the model is the same: one (no hash) against two (no hash)." in notes
    facts = trace(one).facts
    assert facts[0].startswith("measured by our paper, version not stated; imported from mine.csv (")
    assert not any("evaluated" in fact for fact in facts)


OWN = "model,benchmark,metric,score,ci_low,ci_high,n,scale,source\n"


def test_own_rows(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(
        OWN
        + "Mine L/14,pope,pope_accuracy,86.7,85.9,87.5,9000,,our paper\n"
        + "Mine L/14,pope,pope_f1_score,0.99,,,9000,1,our paper\n"
        + "Mine L/14,coco,t2i_r1,42.5,,,5000,,our paper\n"
        + "Mine L/14,nocaps_val,nocaps_CIDEr,106.3,,,,,our paper\n"
        + "Mine L/14,mme,mme_perception_score,1510.2,,,,,our paper\n"
    )
    found = run(file, output=tmp_path / "r")
    metrics = {name: metric for result in found.values() for name, metric in result.metrics.items()}
    pope, f1, coco = metrics["pope_accuracy"], metrics["pope_f1_score"], metrics["t2i_r1"]
    assert (pope.value, pope.ci_low, pope.ci_high) == pytest.approx((0.867, 0.859, 0.875))
    assert (pope.ci_method, pope.n, pope.label) == ("stated", 9000, "accuracy")
    assert (f1.value, f1.ci_low, f1.scale) == (0.99, None, 100.0)  # shown like the others of its column
    assert (coco.value, coco.n) == (0.425, 5000)
    assert metrics["nocaps_CIDEr"].value == 1.063
    assert metrics["mme_perception_score"].value == 1510.2
    assert found["mme"].model_name == "Mine-L-14"
    kinds = {name: result.benchmark_type for name, result in found.items()}
    assert kinds == {"coco": "retrieval"} | dict.fromkeys(("mme", "nocaps_val", "pope"), "mllm")  # an average each
    origin = found["pope"].measured_elsewhere
    assert (origin["tool"], origin["file"], origin["intervals"]) == ("our paper", "mine.csv", "the file")


def test_per_cent_of_points(tmp_path: Path) -> None:
    """31 % of MM-Vet's 100 points were 0.31 points."""
    for score, scale in (("31", "100"), ("0.31", "1"), ("31", "")):
        (tmp_path / "mine.csv").write_text(f"{OWN}m,mmvet,gpt_eval_score,{score},,,,{scale},s\n")
        ((result, *_),) = read_item_tables([tmp_path / "mine.csv"])
        assert result.metrics["gpt_eval_score"].value * result.metrics["gpt_eval_score"].scale == 31.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m,pope,pope_accuracy,high,,,,,s", "line 2: score: expected a number, got 'high'"),
        ("m,pope,pope_accuracy,nan,,,,,s", "line 2: score: expected a number, got 'nan'"),
        ("m,pope,pope_accuracy,8_5.9,,,,,s", "line 2: score: expected a number, got '8_5.9'"),
        ("m,mmvet,gpt_eval_score,0.31,,,,,s", "0.31 may be a ratio or per cent: state the scale"),
        ("m,mme,mme_total,0.7,,,,,s", "0.7 may be a ratio or per cent: state the scale"),
        ("m,pope,pope_accuracy,,,,,,s", "line 2: score: expected a value, got none"),
        ("m,pope,pope_accuracy,50,,,,,", "line 2: item: expected a name, or for a published number its source"),
        ("m,pope,cleverness,50,,,,,s", "'cleverness' is no metric of this suite"),
        ("m,pope,pope_accuracy,0.867,,,,,s", "0.867 may be a ratio or per cent: state the scale"),
        ("m,nocaps_val,nocaps_CIDEr,1.05,,,,,s", "1.05 may be a ratio or per cent: state the scale"),  # lmms-eval's 105
        ("m,pope,pope_accuracy,867,,,,,s", "expected 0 to 100, got 867"),
        ("m,pope,pope_accuracy,86.7,,,,1,s", "expected 0 to 1, got 86.7"),
        ("m,pope,pope_accuracy,50,60,70,,,s", "expected it in its interval"),
        ("m,pope,pope_accuracy,50,40,,,,s", "both ends"),
        ("m,pope,pope_accuracy,50,,,many,,s", "n: expected an integer, got 'many'"),
        ("m,pope,pope_accuracy,50,,,,,s,1", "Expected 9 columns, got 10"),
        (
            "m,pope,pope_accuracy,50,,,,,s\nm,pope,pope_accuracy,51,,,,,s",
            "line 3: expected one number of m on pope",
        ),
        (
            "m,pope,pope_accuracy,50,,,,,s\nm,pope,pope_f1_score,51,,,,,t",
            "line 3: source: expected one value",
        ),
    ],
)
def test_bad_own_rows(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(OWN + line + "\n")
    with pytest.raises(UserError, match=message):
        read_item_tables([tmp_path / "mine.csv"])
