"""Result files survive a round trip, and broken ones are rejected in one line."""

from __future__ import annotations

import dataclasses
import json
import math

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
from benchmarks.tasks.registry import configure
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
        ('{"schema": 1}', "not a result file: missing metrics"),
        ("[]", "not a result file"),
        ({"metrics": []}, r"not a result file: metrics: expected a mapping of names .*, got \[\]"),
        ({"metrics": {"r1": 5}}, "not a result file: metrics.r1: expected a mapping of .*, got 5"),
        ({"surprise": 1}, "not a result file: unknown key 'surprise'"),
        ({"path": "x"}, "not a result file: unknown key 'path'"),
        ({"model_name": 3}, "not a result file: model_name: expected a string, got 3"),
        ({"schema": True}, "not a result file: schema: expected an integer, got True"),
        ("NaN", r"metrics\.r1\.value: expected a finite number"),
        ("1e101", r"metrics\.r1\.value: expected a finite number"),
        (f"-1{'0' * 400}", r"metrics\.r1\.value: expected a (finite )?number"),
        ('"much"', r"metrics\.r1\.value: expected a number"),
    ],
)
def test_a_broken_result_is_rejected_naming_the_field(tmp_path, content, said):
    """Of a whole file, of changed fields, or of a metric's value."""
    path = write_result(tmp_path, _result())
    written = path.read_text()
    if isinstance(content, dict):
        path.write_text(json.dumps(json.loads(written) | content))
    elif content[0] in "{[":
        path.write_text(content)
    else:
        path.write_text(written.replace('"value": 0.5', f'"value": {content}'))
    with pytest.raises(UserError, match=said) as caught:
        read_results(tmp_path)
    assert str(path) in str(caught.value)


def test_a_result_of_a_newer_version_is_never_replaced(tmp_path):
    shards = world.write_shards(tmp_path / "shards", 2)
    path = tmp_path / "results/row/retrieval.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 99}')
    with pytest.raises(UserError, match=r"retrieval\.json: written by a newer version"):
        world.measure(tmp_path / "results", configure(name="retrieval", data=str(shards)), encoder=shards)
    assert path.read_text() == '{"schema": 99}'


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "x" * 201])
def test_names_that_are_no_filenames(name):
    with pytest.raises(UserError, match="expected up to 200 letters"):
        check_name(name, "row")


def test_fingerprint_depends_on_every_entry_and_not_on_their_order():
    protocol = {"data_hash": "abc", "questions": 5, "input_resolution": 64}
    assert fingerprint(protocol) == fingerprint(dict(reversed(protocol.items())))
    for name in protocol:
        assert fingerprint(protocol | {name: "changed"}) != fingerprint(protocol)
    assert fingerprint(protocol, exclude=["input_"]) == fingerprint(
        protocol | {"input_resolution": 224, "input_resize": "squash"}, exclude=["input_"]
    )
    assert fingerprint(protocol, exclude=["input"]) != fingerprint(
        protocol | {"input_resolution": 2}, exclude=["input"]
    )


def test_differences_in_words():
    first = {"questions": 5, "prompt": "Say yes.", "same": 1}
    second = {"questions": 6, "same": 1, "precision": "float32"}
    assert describe_differences(first, second) == [
        "questions: 5 against 6",
        'prompt: "Say yes." against not stated',
        'precision: not stated against "float32"',
    ]
    assert describe_differences(first, first) == []
    decoding, other = ({"decoding": json.dumps({"max_new_tokens": n, "until": ["\n"]})} for n in (16, 128))
    assert describe_differences(decoding, other) == ["decoding, max new tokens: 16 against 128"]
    hashes = [{"data_hash": letter * 64} for letter in "ab"]
    assert describe_differences(*hashes) == [f'data hash: "{"a" * 12}…" against "{"b" * 12}…"']
