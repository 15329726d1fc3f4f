"""Exports: valid in the other project's format, and read back without any loss that is not listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from report_material import edit, items_table, put_result

from benchmarks import cli
from benchmarks.exchange import eval_results, every_eval_ever
from benchmarks.exchange.export_command import ExportConfig, run_export
from benchmarks.exchange.import_command import ImportConfig, run_import
from benchmarks.results.protocol import fingerprint
from benchmarks.results.result_types import BlindScore, Metric, Result
from benchmarks.results.results import read_items, read_result, read_results, result_path
from clips.commandline.commands import dispatch
from clips.errors import UserError
from clips.typed_data import to_plain

PEERS = Path(__file__).parent / "peer_files"
RANDOM_RESULTS = 1000


def command(*arguments: str | Path) -> int:
    return dispatch("clips-bench", "", cli.COMMANDS, [*map(str, arguments)])


NAMES = ("accuracy", "F1 ↓", "a; clips-bench: b", "T→I R@1", 'q"uo\\te', "näme\n2")


def random_metric(rng: np.random.Generator) -> Metric:
    value, free = float(rng.random()), bool(rng.random() < 0.3)
    value = float(rng.normal() * 10.0 ** rng.integers(-8, 8)) if free else value
    has_interval = rng.random() < 0.7
    n = int(rng.integers(1, 10**6))
    blind = BlindScore(value=0.1, sighted=value, gain_low=None, gain_high=float(rng.random()), p_value=0.5, n=3)
    return Metric(
        value=value,
        ci_low=value - float(rng.random()) if has_interval else None,
        ci_high=value + float(rng.random()) if has_interval else None,
        n=n,
        clusters=int(rng.integers(0, n + 1)),
        higher_is_better=[True, False, None][rng.integers(3)],
        scale=float(rng.choice([1.0, 100.0, 1000.0])),
        label=str(rng.choice(NAMES)),
        ci_method=str(rng.choice(["wilson", "student"])) if has_interval else "none",
        aggregation=[None, "mean", "f1"][rng.integers(3)],
        columns=("hit", "other")[: rng.integers(3)],
        chance_levels={"chance": float(rng.random())} if rng.random() < 0.5 else {},
        blind={"blank": blind} if rng.random() < 0.2 else {},
    )


def random_items(rng: np.random.Generator) -> pd.DataFrame:
    count = int(rng.integers(1, 6))
    table = items_table(float(rng.random()), benchmark="pope", count=count, seed=int(rng.integers(1000)))
    score = np.where(rng.random(count) < 0.2, np.nan, rng.random(count))
    return table.assign(
        score=score,
        question=[str(rng.choice(NAMES)) for _ in range(count)],
        rank=rng.integers(0, 99, count),
        right=rng.random(count) < 0.5,
    )


def random_result(rng: np.random.Generator) -> Result:
    names = [f"m{index}" for index in range(int(rng.integers(1, 5)))]
    protocol = {"task": str(rng.choice(NAMES)), "questions": int(rng.integers(99)), "ratio": float(rng.random())}
    elsewhere = {"tool": "lmms-eval", "version": "0.7", "file": "r.json", "sha256": "0", "intervals": "its items"}
    return Result(
        model_name=f"model-{rng.integers(10)}",
        benchmark=str(rng.choice(["pope", "coco_karpathy", "my-own.set"])),
        benchmark_type=str(rng.choice(["mllm", "retrieval"])),
        status="ok",
        model={"path": str(rng.choice(NAMES)), "hash": "ab"},
        metrics={name: random_metric(rng) for name in names},
        primary=tuple(names[: rng.integers(1, len(names) + 1)]),
        missing_metrics={"meteor": str(rng.choice(NAMES))},
        trivial_baseline_note=str(rng.choice(NAMES)),
        protocol=protocol,
        fingerprint=fingerprint(protocol),
        seconds=float(rng.random()),
        versions={"torch": "2.15"},
        git={"commit": "abc", "dirty": bool(rng.random() < 0.5)},
        command="clips-bench run",
        key="k",
        measured_elsewhere=elsewhere if rng.random() < 0.5 else {},
    )


def without(result: Result, *names: str) -> dict[str, Any]:
    return {name: value for name, value in to_plain(result).items() if name not in {"path", "items", *names}}


def schema(name: str) -> jsonschema.Draft7Validator:
    content = json.loads((PEERS / f"every_eval_ever/{name}.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft7Validator(content)


def test_every_eval_ever_loses_only_what_is_listed_and_fits_its_schema(tmp_path: Path) -> None:
    rng, record_schema, sample_schema = np.random.default_rng(0), schema("eval"), schema("instance_level_eval")
    for _ in range(RANDOM_RESULTS):
        result, items = random_result(rng), random_items(rng) if rng.random() < 0.5 else None
        texts = every_eval_ever.convert(result, items, organization="us", relationship="first_party")
        for name, text in texts.items():
            (tmp_path / Path(name).name).write_text(text, encoding="utf-8")
        *samples, name = texts
        record_schema.validate(json.loads(texts[name]))
        for entry in json.loads(texts[name])["evaluation_results"]:
            metric, unit = result.metrics[entry["metric_config"]["metric_id"]], entry["metric_config"]["metric_unit"]
            assert entry["score_details"]["score"] == metric.value * (metric.scale if unit == "points" else 1)
        for line in texts[samples[0]].splitlines()[:2] if samples else ():
            sample_schema.validate(json.loads(line))
        ((found, found_items),) = every_eval_ever.read(tmp_path / Path(name).name)
        lost = {*every_eval_ever.NOT_CARRIED, *([] if result.measured_elsewhere else ["measured_elsewhere"])}
        assert without(found, *lost) == without(result, *lost)
        assert found.measured_elsewhere
        assert found.model == {"hash": "ab"}
        if items is None:
            assert found_items is None
        else:
            columns = [name for name in items if name not in every_eval_ever.IMAGE_COLUMNS]
            pd.testing.assert_frame_equal(found_items[columns], items[columns], check_exact=True)


def test_eval_results_lose_only_what_is_listed(tmp_path: Path) -> None:
    rng, file = np.random.default_rng(1), tmp_path / "one.yaml"
    for _ in range(RANDOM_RESULTS):
        result = random_result(rng)
        (text,) = eval_results.convert(result, "org/data").values()
        file.write_text(text, encoding="utf-8")
        entries = parse_eval_result_entries(yaml.safe_load(text))
        metrics = [*dict.fromkeys([*result.primary, *result.metrics])]
        assert [entry.value for entry in entries] == [
            result.metrics[name].value * result.metrics[name].scale for name in metrics
        ]
        ((found, _),) = eval_results.read(file)
        for name in set(eval_results.CARRIED) - {"fingerprint"}:
            assert to_plain(getattr(found, name)) == to_plain(getattr(result, name))
        assert result.fingerprint in found.measured_elsewhere["version"]


@pytest.mark.parametrize("name", ["eval_results", "every_eval_ever"])
def test_export_and_import_by_command(tmp_path: Path, name: str) -> None:
    put_result(tmp_path / "r", "mine", "pope", items_table(0.6, benchmark="pope"))
    put_result(tmp_path / "r", "mine", "gqa", items_table(0.4, benchmark="gqa"))
    edit(tmp_path / "r/mine/gqa.json", command="clips-bench run --output /home/me/x", model={"path": "/home/me/m"})
    assert command("export", tmp_path / "r", "--format", name, "--output", tmp_path / "out") == 0
    files = sorted((tmp_path / "out").rglob("*.yaml" if name == "eval_results" else "*.json"))
    assert len(files) == 2
    assert not any("/home/me" in file.read_text(encoding="utf-8") for file in files)
    assert command("import", *files, "--output", tmp_path / "back") == 0
    for before in read_results(tmp_path / "r"):
        after = read_result(result_path(tmp_path / "back", "mine", before.benchmark))
        assert to_plain(after.metrics) == to_plain(before.metrics)
        assert after.measured_elsewhere["tool"] == "clips-bench"
        if name == "every_eval_ever":
            assert after.fingerprint == before.fingerprint
            columns = ["item", "image", "question", "prediction", "target", "score", "hit"]
            pd.testing.assert_frame_equal(read_items(after)[columns], read_items(before)[columns])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"score": ', '"score": 1'),
        ('"score": ', '"points": '),
        ('"evaluation_results": [', '"evaluation_results": [3, '),
        ('"clips_bench"', '"other"'),
        (r"\"metrics\"", r"\"numbers\""),
        ("value: ", "value: 1"),
        ("clips-bench: ", "other: "),
        ('"scale"', '"size"'),
    ],
)
def test_changed_exports_are_errors(tmp_path: Path, old: str, new: str) -> None:
    result = random_result(np.random.default_rng(2))
    texts = eval_results.convert(result, "org/data")
    texts |= every_eval_ever.convert(result, None, organization="us", relationship="other")
    tried = [(name, text) for name, text in texts.items() if old in text]
    for name, text in tried:
        file = tmp_path / Path(name).name
        file.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match=file.name):
            run_import(ImportConfig(files=(str(file),), output=str(tmp_path / "r")))
    assert tried


def test_bad_exports(tmp_path: Path) -> None:
    for row in ("a", "b"):
        put_result(tmp_path / "r", row, "pope", items_table(0.6, benchmark="pope"))
    config = {"results": str(tmp_path / "r"), "output": str(tmp_path / "o"), "format": "eval_results"}
    for more, message in (({}, "model_name: expected one of a, b"), ({"model_name": "c"}, "unknown model 'c'")):
        with pytest.raises(UserError, match=message):
            run_export(ExportConfig(**config, **more))
    assert not (tmp_path / "o").exists()
