"""Result files that their items contradict: rejected when read, in a report a cell with the reason."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from fuzz_world import Ended, run
from report_material import edit, items_table, put_result, put_results, rendered

from benchmarks.analysis.compare_command import CompareConfig, build_comparison
from benchmarks.analysis.find_results import find_results_by_row
from benchmarks.analysis.provenance import ProvenanceConfig, run_provenance
from benchmarks.report.report import build_report
from benchmarks.report.table import Cell
from benchmarks.results.aggregation import AGGREGATIONS
from benchmarks.results.item_scores import most_of
from benchmarks.results.protocol import fingerprint
from benchmarks.results.results import Metric, Result, read_result, result_path, write_result
from benchmarks.results.statistics import wilson_interval
from benchmarks.tasks.evaluation import MetricSpec, compute_metric
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS
from clips.errors import UserError


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return put_results(tmp_path / "results")


@pytest.mark.parametrize(
    ("metric", "fields", "told"),
    [
        ("accuracy", {"value": 0.9}, r"accuracy\.value: expected it in its interval, 0\.\d+ to 0\.\d+, got 0\.9$"),
        ("accuracy", {"value": 5.0, "ci_low": 4.0, "ci_high": 6.0}, r"\.value: expected a ratio from 0 to 1, got 5$"),
        ("accuracy", {"value": 0.6, "ci_low": 0.5, "ci_high": 0.7}, r"expected 0\.\d+, as its items give, got 0\.6$"),
        ("accuracy", {"n": 1000}, r"metrics\.accuracy\.n: expected 120, as its items have, got 1000$"),
        ("accuracy", {"clusters": 30}, r"metrics\.accuracy\.clusters: expected 60, as its items have, got 30$"),
        ("accuracy", {"aggregation": "x"}, r"metrics\.accuracy\.aggregation: expected one of mean, .*, got 'x'$"),
        ("accuracy", {"columns": ["gone"]}, r"accuracy\.columns: expected one of pope\.items\.parquet, got 'gone'$"),
        ("accuracy", {"columns": ["prediction"]}, r"expected numbers in 'prediction' of pope\.items\.parquet, got "),
        ("accuracy", {"scale": 0.0}, r"metrics\.accuracy\.scale: expected a number above 0, got 0$"),
        ("accuracy", {"aggregation": None, "columns": [], "value": 5.0, "ci_low": None, "ci_high": None},
         r"metrics\.accuracy\.value: expected a ratio from 0 to 1, got 5$"),
        ("accuracy", {"chance_levels": {"chance": 50.0}}, r"\.chance: expected a ratio from 0 to 1, got 50$"),
        (None, {"items": ""}, r"items: expected the name of a file, got ''$"),
        (None, {"fingerprint": "0" * 64}, r"fingerprint: expected the protocol's, [0-9a-f]{12}…, got '000000000000'$"),
        (None, {"protocol": {"prompt": "another"}}, r"fingerprint: expected the protocol's"),
        (None, {"protocol": {"prompt": ["a"]}}, r'protocol\.prompt: expected a plain value, got \["a"\]$'),
    ],
)  # fmt: skip
def test_a_number_that_its_items_contradict_is_rejected(results, metric, fields, told):
    path = results / "clip/pope.json"
    edit(path, *([metric] if metric else []), **fields)
    with pytest.raises(UserError, match=told) as caught:
        read_result(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"hit": "yes"}, r"columns: expected numbers in 'hit' of pope\.items\.parquet, got (large_)?string$"),
        ({"hit": 0.25}, r"metrics\.accuracy\.value: expected 0\.25, as its items give"),
        ({"item": "one"}, r"pope\.items\.parquet: item: expected different names, got 'one' twice$"),
        ({"image": None}, r"pope\.items\.parquet: image: expected a name in each row, got none in 120$"),
        ({"thumbnail": 5}, r"pope\.items\.parquet: thumbnail: unexpected type int64$"),
    ],
)
def test_an_invalid_table_of_items_is_rejected(results, columns, told):
    table = results / "clip/pope.items.parquet"
    pd.read_parquet(table).assign(**columns).to_parquet(table, index=False)
    edit(results / "clip/pope.json", items_hash="")  # as files of earlier versions
    with pytest.raises(UserError, match=told):
        read_result(results / "clip/pope.json")


def test_items_of_another_evaluation_are_rejected(results):
    """Scores that are permuted among the items have the same mean; intervals, ranks and tests are others."""
    path, table = results / "clip/pope.json", results / "clip/pope.items.parquet"
    before = build_report(results).table.cell("clip", "pope", "accuracy")
    items = pd.read_parquet(table)
    items["hit"] = items["score"] = items["hit"].to_numpy()[::-1]
    items.to_parquet(table, index=False)
    told = r"clip/pope\.json: items_hash: expected that of pope\.items\.parquet, [0-9a-f]{12}…, got '[0-9a-f]{12}…'$"
    for reader in (
        read_result,
        lambda path: run_provenance(ProvenanceConfig(result=str(path), check=False)),
    ):
        with pytest.raises(UserError, match=told):
            reader(path)
    both = build_comparison(CompareConfig(first=str(results / "clip"), second=str(results / "clips")))
    for table, row in ((build_report(results).table, "clip"), (both.table, "A clip")):
        missing = table.cell(row, "pope", "accuracy").missing
        assert missing is not None
        assert missing.kind == "invalid"
    edit(path, items_hash="")
    assert build_report(results).table.cell("clip", "pope", "accuracy").value == before.value  # of an earlier version


def judged(folder: Path, name: str, points: list[float], spec: MetricSpec, **changes: object) -> Cell:
    """The cell of a result on one image an item, with changes of its file's metric."""
    items = items_table(0.5, benchmark="pope", count=len(points)).assign(points=points)
    items["image"] = [f"image {place}" for place in range(len(points))]
    path = result_path(folder, "one", "mmvet")
    protocol = {"questions": len(points)}
    result = Result(model_name="one", benchmark="mmvet", benchmark_type="mllm", status="ok", model={"hash": "0"},
                    metrics={name: compute_metric(items, spec)}, primary=(name,), protocol=protocol,
                    fingerprint=fingerprint(protocol))  # fmt: skip
    write_result(folder, result, items)
    edit(path, name, **changes)
    return build_report(folder).table.scores[0]


@pytest.mark.parametrize("best", [0.0, 1.0, 1.5, 10.0])
def test_the_maximum_of_an_item_is_that_of_the_metric(tmp_path: Path, best: float):
    """Points of 100 that were all at most 1 were taken for ratios: a report had 0 [0, 0.06], the file 0 [0, 6.0]."""
    spec = TASK_METRICS["mmvet"].metrics["gpt_eval_score"]
    points = [0.0] * 59 + [best]
    expected = wilson_interval(60 * best / 60 / 100, 60) if not best else None
    for changes in ({}, {"most": None}):  # most: of an earlier version
        cell = judged(tmp_path / str(len(changes)), "gpt_eval_score", points, spec, **changes)
        stored = read_result(tmp_path / str(len(changes)) / "one/mmvet.json").metrics["gpt_eval_score"]
        assert (cell.ci_low, cell.ci_high) == pytest.approx((stored.ci_low, stored.ci_high))
        assert 5 * best / 60 < cell.ci_high < 10
        assert expected is None or cell.ci_high == pytest.approx(100 * expected[1])


def test_a_metric_whose_maximum_is_not_known_has_no_interval_at_an_end(tmp_path: Path):
    spec = MetricSpec(label="grade", columns=("points",), scale=1.0, most=math.inf)
    cell = judged(tmp_path, "grade", [0.0] * 60, spec)
    assert (cell.ci_low, cell.no_interval) == (None, "the score does not vary over the images")


def test_the_maximum_in_files_of_earlier_versions_is_that_of_the_metrics():
    for task in TASK_METRICS.values():
        for name, spec in {**task.metrics, **task.extra}.items():
            if spec.aggregation and AGGREGATIONS[spec.aggregation].bounded:
                old = Metric(value=0, ci_low=None, ci_high=None, n=1, clusters=1, higher_is_better=True,
                             scale=spec.scale, label="", ci_method="none")  # fmt: skip
                assert most_of(name, old) == spec.most, name


def test_a_scorers_rounding_is_no_fault(results):
    path = results / "clip/pope.json"
    value = json.loads(path.read_text())["metrics"]["accuracy"]["value"]
    edit(path, "accuracy", value=value + 5e-6)
    assert read_result(path).metrics["accuracy"].value == value + 5e-6


def test_a_file_is_written_with_the_fingerprint_of_what_is_in_it(tmp_path: Path):
    path = put_result(
        tmp_path,
        "clip",
        "pope",
        items_table(0.5, benchmark="pope"),
        protocol={"model_args": "base_url=https://me:abcdefgh@host"},
    )
    assert "***" in path.read_text()
    kept = read_result(path)
    again = write_result(tmp_path / "again", kept)
    assert read_result(again).fingerprint == kept.fingerprint


def report(directory: Path) -> Ended:
    return run("clips-bench", ["report", str(directory), "--formats=csv"])


@pytest.mark.parametrize("fields", [{"value": 0.9}, {"columns": ["prediction"]}])
def test_an_invalid_file_is_a_cell_of_the_report(results, fields: dict[str, object]):
    """Before: a number in the table, or a traceback where the formula or a column was not what it should be."""
    edit(results / "clip/pope.json", "accuracy", **fields)
    ended = report(results)
    assert ended.status == 0, ended.err
    (warned,) = [line for line in ended.err.splitlines() if line.startswith("warning: ")]
    assert warned.startswith("warning: clip on pope: clip/pope.json: ")
    built = build_report(results, baseline="clips")
    cells = {(cell.row, cell.column.benchmark): cell for cell in built.table.scores}
    assert cells["clip", "pope"].missing.kind == "invalid"
    assert all(cell.value is not None for place, cell in cells.items() if place != ("clip", "pope"))
    assert any(remark.startswith("clip on pope: invalid: clip/pope.json: ") for remark in built.texts)
    assert "& invalid &" in rendered(built, "latex")
    for name in ("html", "markdown", "csv", "wide"):
        assert "invalid: clip/pope.json" in rendered(built, name).replace(r"\_", "_"), name


def test_numbers_of_another_scale_do_not_stand_in_one_column(results):
    edit(results / "clips/pope.json", "accuracy", scale=1000.0)
    built = build_report(results)
    (column,) = (column for column in built.table.columns if column.benchmark == "pope")
    gap = next(cell for cell in built.table.cells(column) if cell.row == "clips").missing
    assert gap is not None
    assert gap.reason == "scale: expected 100.0 as other models have, got 1000.0"


def test_an_interval_is_that_of_the_items(results):
    """A file may say another one, as those of earlier versions do."""
    expected = build_report(results).table.cell("clip", "pope", "accuracy")
    value = json.loads((results / "clip/pope.json").read_text())["metrics"]["accuracy"]["value"]
    edit(results / "clip/pope.json", "accuracy", ci_low=value - 1e-4, ci_high=value + 1e-4)
    found = build_report(results).table.cell("clip", "pope", "accuracy")
    assert (found.ci_low, found.ci_high) == (expected.ci_low, expected.ci_high)
    assert expected.ci_high - expected.ci_low > 5


def test_a_ratio_of_any_scale_has_wilsons_interval(tmp_path: Path):
    """A scale of 1,000, as OCRBench has, or of 1 made it a number without ends."""
    ends = {}
    for scale in (1.0, 100.0, 1000.0):
        path = put_result(tmp_path / f"{scale:g}", "one", "pope", items_table(0.95, benchmark="pope"))
        edit(path, "accuracy", scale=scale, ci_low=None, ci_high=None)
        table = build_report(path.parents[1]).table
        cell = next(cell for cell in table.scores if cell.column.metric == "accuracy")
        ends[scale] = [cell.ci_low / scale, cell.ci_high / scale]
    assert ends[1.0] == pytest.approx(ends[100.0])
    assert ends[1000.0] == pytest.approx(ends[100.0])


def test_verify_rejects_an_invalid_file_and_compare_names_it(results):
    edit(results / "clip/pope.json", "accuracy", value=0.99)
    ended = run("clips-bench", ["verify", str(results)])
    assert ended.status != 0
    assert "Traceback" not in ended.err
    report = build_comparison(CompareConfig(first=str(results / "clip"), second=str(results / "clips")))
    cell = report.table.cell("A clip", "pope", "accuracy")
    assert cell.missing is not None
    assert (cell.missing.kind, cell.delta) == ("invalid", None)
    with pytest.raises(UserError, match=r"clip/pope\.json: metrics\.accuracy\.value"):
        find_results_by_row(str(results), "results")


def test_duplicate_results_of_a_model_and_benchmark_are_rejected(results):
    """Before: the report showed the one that was read last, and said nothing."""
    shutil.copytree(results / "clips", results / "clips-again")
    mine, other = results / "clips/gqa.json", results / "clips-again/gqa.json"
    edit(other, "exact_match", label="another")
    for command in (["report", str(results)], ["compare", str(results), str(results)]):
        ended = run("clips-bench", command)
        assert ended.status == 2, command
        assert f"{other}: expected one result of 'clips' on 'gqa', but {mine} is another" in ended.line()
    with pytest.raises(UserError, match="is another; remove one"):
        find_results_by_row(str(results), "results")


def test_a_result_whose_items_are_missing_is_shown_and_said_to_be_unchecked(results):
    """Before: no report of any of the results."""
    (results / "clip/pope.items.parquet").unlink()
    value = read_result(result_path(results, "clip", "pope")).metrics["accuracy"].value
    built = build_report(results, baseline="clips")
    (cell,) = [each for each in built.table.scores if (each.row, each.column.benchmark) == ("clip", "pope")]
    assert (cell.value, cell.delta) == (value * 100, None)
    assert "Not checked, because their items are missing: clip on pope." in built.texts
