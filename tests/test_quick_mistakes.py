"""A wrong command line is reported before torch and similar libraries are imported, which takes many seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_world import draw_image
from clips_world import config_text

from clips.model_refs import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS

PROGRAM = """
import contextlib, importlib, io, json, sys
heavy = {"torch", "transformers", "datasets", "lmms_eval", "open_clip", "timm", "tensorflow"}
for package, *words in json.load(sys.stdin):
    sys.argv, before, told = [package, *words], set(sys.modules), io.StringIO()
    with contextlib.redirect_stderr(told):
        status = importlib.import_module(f"{package}.cli").main()
    print(json.dumps([status, told.getvalue(), sorted(heavy & (sys.modules.keys() - before))]))
"""
"""Command lines of standard input, one after the other in one process: status, stderr, imports."""
RETRIEVAL = "{name: retrieval, data: captions.csv}"
STUDY = "{name: s, encoders: {e: 'timm:net'}, benchmarks: {linear_probe: {data: photos}}}"
OPENAI = "--include rerun --reference_model ViT-B-32/openai"
MISTAKES = [
    ("clips data inspect none.csv --format table", "none.csv: no such file"),
    ("clips data inspect captions.csv --format tabel", "did you mean 'table'?"),
    (
        "clips data inspect captions.csv --num_samples many",
        "num_samples: expected an integer of at least 0, got 'many'",
    ),
    ("clips data index none", "none: no such file or directory"),
    ("clips train --config none.yaml", "none.yaml: no such file"),
    ("clips train --config train.yaml --global_batchsize 8", "did you mean 'global_batch_size'?"),
    ("clips train --config train.yaml --recipe.name clup", "unknown recipe 'clup'"),
    ("clips train --config train.yaml --recipe.loss softmix", "did you mean 'softmax'?"),
    ("clips train --config train.yaml --max_steps few", "max_steps: expected an integer"),
    ("clips train --config train.yaml", "data.sources[1]: shards: no such file or directory"),
    ("clips train --config train.yaml --output captions.csv/out", "captions.csv: is a file; expected a directory"),
    ("clips train --config train.yaml --output encoder", "encoder: not empty, and not an artifact of kind 'encoder'"),
    ("clips train --config train.yaml --data.sources [{path: encoder}]", "encoder: expected .tar shards"),
    (
        "clips train --config train.yaml --data.sources [{path: none.csv, format: table}]",
        "none.csv: no such file or directory",
    ),
    (
        "clips train --config train.yaml --data.sources [{path: none.json, format: coco}]",
        "none.json: no such file or directory",
    ),
    ("clips plan none.yaml", "none.yaml: no such file"),
    ("clips plan train.yaml --recipe clip", "unknown key 'recipe'"),
    ("clips export none --output out", "none: no such directory"),
    ("clips export none --output out --format hf_clap", "did you mean 'hf_clip'?"),
    ("clips import none --output out", "none: no such file or directory"),
    ("clips import captions.csv --output encoder", "encoder: not empty"),
    ("clips import captions.csv --output made", "made: exists already; choose another output or remove it"),
    ("clips export none --output made", "made: exists already; choose another output or remove it"),
    ("llava_bridge convert encoder --output made", "made: exists already; choose another output or remove it"),
    ("clips recaption none --model none --output out", "none: no such file or directory"),
    ("llava_bridge train --config none.yaml", "none.yaml: no such file"),
    ("llava_bridge chat none --image photo.png", "none: no such directory"),
    ("llava_bridge serve none", "none: no such directory"),
    ("llava_bridge data inspect none.json --llm none", "none.json: no such file"),
    ("benchmarks run --config none.yaml", "none.yaml: no such file"),
    (f"benchmarks run encoder none --benchmarks [{RETRIEVAL}]", "encoder: none: no such directory"),
    ("benchmarks run encoder encoder --benchmarks [{name: retrievel, data: captions.csv}]", "did you mean 'retrieval'"),
    ("benchmarks run encoder encoder --benchmarks [{name: retrieval, data: none.csv}]", "none.csv: no such file"),
    (f"benchmarks run encoder encoder --batch_size big --benchmarks [{RETRIEVAL}]", "expected an integer"),
    ("benchmarks run encoder encoder --benchmarks [{name: retrieval, date: x}]", "did you mean 'data'?"),
    (f"benchmarks run encoder llava --benchmarks [{RETRIEVAL}]", "llava is a LLaVA; `clips-bench run llava llava`"),
    (f"benchmarks run llava encoder --benchmarks [{RETRIEVAL}]", "encoder is an encoder; `clips-bench run encoder"),
    ("benchmarks run llava none --benchmarks [{name: pope, data: .}]", "llava: none: no such directory"),
    (
        "benchmarks score --task pope --answers none.jsonl --data . --output o --model_name x",
        "none.jsonl: no such file",
    ),
    ("benchmarks study run none.yaml", "none.yaml: no such file"),
    ("benchmarks study run study.yaml --gpus 8", "for a study, set 'resources' in its file"),
    ("benchmarks study run study.yaml --num-gpus 8", "for a study, set 'resources' in its file"),
    ("benchmarks study run study.yaml --nproc 8", "for a study, set 'resources' in its file"),
    ("clips plan train.yaml --gpus 64", "did you mean 'num_gpus'?"),
    ("benchmarks study rerun none.yaml --steps x", "none.yaml: no such file"),
    ("benchmarks study accept none.yaml step", "none.yaml: no such file"),
    ("benchmarks report none", "none: no such file or directory"),
    *(
        (f"benchmarks study {command}", "encoder: expected a study file (YAML), got a directory")
        for command in ("run encoder", "plan encoder", "status encoder", "accept encoder")
    ),
    ("benchmarks study rerun encoder --steps x", "encoder: expected a study file (YAML), got a directory"),
    ("benchmarks study status captions.csv", "captions.csv: expected a mapping with name, encoders, benchmarks"),
    ("benchmarks study accept study.yaml --output encoder", "encoder/study.json: no study was run here"),
    ("benchmarks study accept study.yaml --output broken", "broken/study.json: not valid JSON"),
    ("benchmarks study accept study.yaml --output captions.csv", "captions.csv: no study was run here"),
    ("benchmarks study power broken", "broken/study.json: not valid JSON"),
    ("benchmarks report broken", "broken/study.json: not valid JSON"),
    ("benchmarks compare broken encoder", "broken/study.json: not valid JSON"),
    ("benchmarks compare none encoder", "first: none: no such file or directory"),
    ("benchmarks compare captions.csv encoder", "captions.csv: expected a column 'model' (found picture, caption)"),
    *(
        (
            f"benchmarks {command}",
            "broken: expected result files (<benchmark>.json, <model>/<benchmark>.json), found none",
        )
        for command in ("provenance broken", f"verify {OPENAI} --results broken")
    ),
    ("benchmarks provenance captions.csv", "captions.csv: not a result file"),
    ("benchmarks verify --include rerum", "did you mean 'rerun'?"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "captions.csv").write_text("picture,caption\n1.jpg,a dog\n")
    (folder / "train.yaml").write_text(config_text(Path("shards"), Path("out"), max_steps=1))
    draw_image(0).save(folder / "photo.png")
    (folder / "study.yaml").write_text(STUDY)
    for name, content in (("broken", '{"schema": 2, "name"'), ("listed", "[]")):
        (folder / name).mkdir()
        (folder / name / "study.json").write_text(content)
    (folder / "odd/study.json").mkdir(parents=True)
    (folder / "made").mkdir()
    (folder / "made" / "manifest.json").write_text('{"kind": "encoder", "hash": "0"}')
    (folder / "llava").mkdir()
    (folder / "llava" / "config.json").write_text('{"model_type": "llava", "text_config": {}}')
    (folder / "encoder").mkdir()
    (folder / "encoder" / OPEN_CLIP_CONFIG).write_text("{}")
    (folder / "encoder" / OPEN_CLIP_WEIGHTS).write_bytes(b"")
    return folder


def words(line: str) -> list[str]:
    """A list at the end, which has spaces, is one word."""
    head, bracket, rest = line.partition("[")
    return [*head.split(), *([bracket + rest] if bracket else [])]


@pytest.fixture(scope="module")
def ended(place: Path) -> dict[str, list]:
    asked = json.dumps([words(line) for line, _ in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=asked, cwd=place, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line: found for (line, _), found in zip(MISTAKES, lines, strict=True)}


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_config_error_is_reported_without_torch(line: str, message: str, place: Path, ended: dict[str, list]) -> None:
    status, told, heavy = ended[line]
    assert heavy == []
    assert status == 2
    assert message.replace("{place}", str(place)) in told
    assert told.count("\n") == 1
