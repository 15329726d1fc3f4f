"""Result files survive a round trip, and broken ones are refused in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import bench_world as world
import pandas as pd
import pytest

from benchmarks.results.protocol import describe_differences, fingerprint
from benchmarks.results.results import (
    ITEM_COLUMNS,
    Metric,
    Result,
    check_name,
    columns_of,
    read_items,
    read_result,
    read_results,
    result_path,
    write_result,
)
from benchmarks.tasks.run_benchmarks import run_benchmarks
from benchmarks.tasks.run_config import BenchmarkConfig, RunConfig
from clips.errors import UserError


def _result(**changes) -> Result:
    metric = Metric(
        value=0.5, ci_low=0.4, ci_high=math.nan, n=2, clusters=2, higher_is_better=True, scale=100.0, label="R@1",
        ci_method="bootstrap", aggregation="mean", columns=("score",),
    )  # fmt: skip
    result = Result(
        model_name="clip", benchmark="retrieval", benchmark_type="retrieval", status="ok",
        model={"path": "x", "hash": "y"},
        metrics={"r1": metric}, primary=("r1",), protocol={"data_hash": "é"},
    )  # fmt: skip
    return dataclasses.replace(result, **changes)


def test_round_trip(tmp_path):
    items = pd.DataFrame(dict.fromkeys(ITEM_COLUMNS, ""), index=[0, 1])
    items = items.assign(item=["a", "b"], image=["1", "2"], score=[1.0, 0.0], thumbnail=[b"\xff", None])
    path = write_result(tmp_path, _result(), items)
    assert path == result_path(tmp_path, "clip", "retrieval")
    found = read_result(path)
    expected = _result().metrics["r1"]
    assert found.metrics["r1"] == dataclasses.replace(expected, ci_high=None)  # JSON has no NaN
    assert (found.protocol, found.primary, found.path) == ({"data_hash": "é"}, ["r1"], path)
    pd.testing.assert_frame_equal(read_items(found), items)
    assert columns_of(read_items(found), ("score",))["score"].tolist() == [1.0, 0.0]
    assert [result.benchmark for result in read_results(tmp_path)] == ["retrieval"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["retrieval.items.parquet", "retrieval.json"]


def test_failed_result_replaces_the_items_of_an_old_one(tmp_path):
    write_result(tmp_path, _result(), pd.DataFrame({"item": ["a"]}))
    path = write_result(tmp_path, _result(status="failed", failure_reason="no shard", metrics={}))
    assert read_result(path).failure_reason == "no shard"
    with pytest.raises(UserError, match="has no items"):
        read_items(read_result(path))
    assert [file.name for file in path.parent.iterdir()] == ["retrieval.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema": 99}', "newer version"),
        ("{", "not a result file"),
        ('{"schema": 1}', "not a result file"),
        ("[]", "not a result file"),
    ],
)
def test_broken_results(tmp_path, content, said):
    file = tmp_path / "row" / "x.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        read_results(tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": []}, "metrics: expected a mapping of names .*, got \\[\\]"),
        ({"metrics": None}, "metrics: expected a mapping of names .*, got null"),
        ({"metrics": {"r1": 5}}, "metrics.r1: expected a mapping of .*, got 5"),
        ({"protocol": "x"}, "protocol: expected a mapping, got 'x'"),
        ({"model_name": 3}, "model_name: expected a string, got 3"),
        ({"schema": True}, "schema: expected an integer, got True"),
        ({"path": "x.json"}, "unknown key 'path'"),
    ],
)
def test_a_field_of_a_wrong_type_is_named(tmp_path, changes, said):
    path = write_result(tmp_path, _result())
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=f"not a result file: {said}"):
        read_result(path)


def test_a_value_that_is_no_number_is_named(tmp_path):
    path = write_result(tmp_path, _result())
    path.write_text(path.read_text().replace('"value": 0.5', '"value": "much"'))
    with pytest.raises(UserError, match=r"metrics\.r1\.value: expected a number, got .much."):
        read_result(path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e101", f"1{'0' * 101}", f"-1{'0' * 400}"])
def test_a_number_that_is_not_finite_is_named(tmp_path, value):
    path = write_result(tmp_path, _result())
    path.write_text(path.read_text().replace('"value": 0.5', f'"value": {value}'))
    with pytest.raises(UserError, match=r"metrics\.r1\.value: expected a finite number"):
        read_result(path)


def test_a_metric_without_columns_is_named(tmp_path):
    path = write_result(tmp_path, _result())
    content = json.loads(path.read_text())
    del content["metrics"]["r1"]["columns"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"metrics\.r1: missing columns"):
        read_result(path)


def test_a_result_file_that_cannot_be_read(tmp_path):
    (tmp_path / "row/x.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"x\.json: cannot be read \(Is a directory\)"):
        read_result(tmp_path / "row/x.json")


def test_a_row_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    write_result(tmp_path, _result())
    write_result(tmp_path, _result(model_name="other"))
    listed = os.listdir

    def denied(path):
        if Path(path).name == "other":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="other"):
        read_results(tmp_path)


def test_a_result_of_a_newer_version_is_never_replaced(tmp_path):
    shards = world.write_shards(tmp_path / "shards", 2)
    path = tmp_path / "results/row/retrieval.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 99}')
    config = BenchmarkConfig(name="retrieval", data=str(shards))
    with pytest.raises(UserError, match=r"retrieval\.json: written by a newer version"):
        run_benchmarks(
            RunConfig(model_name="row", output=str(tmp_path / "results"), encoder=str(shards), benchmarks=[config])
        )
    assert path.read_text() == '{"schema": 99}'


def test_a_result_of_an_unknown_field_is_refused(tmp_path):
    path = write_result(tmp_path, _result())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))
    with pytest.raises(UserError, match="not a result file"):
        read_result(path)


def test_missing_items_file(tmp_path):
    path = write_result(tmp_path, _result(), pd.DataFrame({"item": ["a"]}))
    path.with_name("retrieval.items.parquet").unlink()
    with pytest.raises(UserError, match=r"items of retrieval\.json are missing"):
        read_items(read_result(path))


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "a/b", "x" * 201])
def test_names_that_are_no_file_names(name):
    with pytest.raises(UserError, match="expected up to 200 letters"):
        check_name(name, "row")


def test_fingerprint_depends_on_every_entry_and_not_on_their_order():
    protocol = {"data_hash": "abc", "questions": 5, "input_resolution": 64}
    assert fingerprint(protocol) == fingerprint(dict(reversed(protocol.items())))
    for name in protocol:
        assert fingerprint(protocol | {name: "changed"}) != fingerprint(protocol)
    assert fingerprint(protocol, across=["input_"]) == fingerprint(
        protocol | {"input_resolution": 224, "input_resize": "squash"}, across=["input_"]
    )
    assert fingerprint(protocol, across=["input"]) != fingerprint(protocol | {"input_resolution": 2}, across=["input"])


def test_differences_in_words():
    first = {"questions": 5, "prompt": "Say yes.", "same": 1}
    second = {"questions": 6, "same": 1, "precision": "float32"}
    assert describe_differences(first, second) == [
        "questions: 5 against 6",
        'prompt: "Say yes." against not stated',
        'precision: not stated against "float32"',
    ]
    assert describe_differences(first, first) == []
    decoding = {"decoding": json.dumps({"max_new_tokens": 16, "until": ["\n"]})}
    other = {"decoding": json.dumps({"max_new_tokens": 128, "until": ["\n"]})}
    assert describe_differences(decoding, other) == ["decoding, max new tokens: 16 against 128"]
    assert describe_differences(decoding, {"decoding": "made elsewhere"}) == [
        'decoding: max new tokens 16, until ["\\n"] against "made elsewhere"'
    ]
    assert describe_differences({"data_hash": "a" * 64}, {"data_hash": "b" * 64}) == [
        f'data hash: "{"a" * 12}…" against "{"b" * 12}…"'
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_name": "a/b"}, "model_name: expected up to 200 letters"),
        ({"encoder": None}, "encoder: expected"),
        ({"benchmarks": []}, "benchmarks: expected at least one"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"benchmarks": [BenchmarkConfig(name="x", data="d")] * 2}, "'x' is there twice"),
    ],
)
def test_run_config_names_the_wrong_field(changes, said):
    good = {"model_name": "a", "output": "r", "encoder": "e", "benchmarks": [BenchmarkConfig(name="x", data="d")]}
    RunConfig(**good)
    with pytest.raises(UserError, match=said):
        RunConfig(**good | changes)


@pytest.mark.parametrize("field", ["limit", "captions_per_image", "max_new_tokens"])
def test_benchmark_config_names_the_wrong_field(field):
    with pytest.raises(UserError, match=rf"benchmarks.{field}: expected at least 1, got 0 \(benchmark 'x'\)"):
        BenchmarkConfig(name="x", data="d", **{field: 0})


def test_a_setting_that_the_benchmark_does_not_take_is_refused(tmp_path):
    shards = world.write_shards(tmp_path / "shards", 2)
    config = BenchmarkConfig(name="retrieval", data=str(shards), max_new_tokens=3)
    with pytest.raises(UserError, match=r"^benchmarks\[1\]\.max_new_tokens: 'retrieval' takes no such setting \(it ta"):
        run_benchmarks(RunConfig(model_name="row", output=str(tmp_path), encoder=str(shards), benchmarks=[config]))
