"""Broken input of every kind, and what must hold for any of it: defined once, for the tests and ``scripts/fuzz.py``.

A target draws input, gives it to a command in this process, and asserts that nothing went wrong but the input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import clips_world
import pandas as pd
import yaml
from fuzz_inputs import CAPTIONS, PLAIN, damaged, mutated
from fuzz_world import PROGRAMS, Ended, World, attempt, check_end, check_nothing_left, check_rejection, parsing, run
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]


def _shipped() -> list[tuple[str, list[str], Any]]:
    """(program, command, content) of every YAML file of a training that ships, and of small configs of the rest."""
    found: list[tuple[str, list[str], Any]] = []
    for path in sorted((ROOT / "scripts/configs").rglob("*.yaml")):
        program = "llava-bridge" if path.parent.name == "llava" else "clips"
        found.append((program, ["train"], yaml.safe_load(path.read_text(encoding="utf-8"))))
    world = json.loads(clips_world.config_text(Path("shards"), Path("run"), validation={"source": {"path": "a"}}))
    benchmark = {"name": "retrieval", "data": "shards", "split": "test"}
    return [
        *found,
        ("clips", ["train"], world),
        (
            "clips",
            ["data", "inspect"],
            {"path": "shards", "format": "table", "synthetic_caption": ["a", "b"], "num_samples": 3},
        ),
        (
            "clips",
            ["recaption"],
            {"path": "shards", "model": "a", "output": "b", "num_captions": 2, "temperature": 0.7, "max_words": 90},
        ),
        ("llava-bridge", ["serve"], {"model": "a", "port": 80}),
        ("clips-bench", ["run"], {"model_name": "a", "encoder": "b", "output": "c", "benchmarks": [benchmark]}),
        ("clips-bench", ["report"], {"directory": "a", "reference_results": ["clips"], "formats": ["csv"]}),
    ]


CONFIGS = _shipped()
STUDIES = [
    yaml.safe_load(path.read_text(encoding="utf-8").replace("python scripts/", f"python {ROOT}/scripts/"))
    for path in sorted((ROOT / "scripts/studies").glob("*.yaml"))
]


def _as_yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def configs(world: World, data: st.DataObject) -> None:
    """A config with one key changed is rejected by name, or could run; a damaged file is rejected."""
    program, command, content = data.draw(st.sampled_from(CONFIGS))
    path = world.fresh() / "config.yaml"
    if data.draw(st.sampled_from(["key", "key", "key", "key", "bytes"])) == "bytes":
        path.write_bytes(data.draw(damaged(_as_yaml(content).encode())))
        culprits: tuple[str, ...] = ()
    else:
        content, names = data.draw(mutated(content))
        path.write_text(_as_yaml(content), encoding="utf-8")
        others = ("max_steps",) if "stages" in names else ()  # without stages, their lengths must be given
        culprits = (*names, *others, "config.yaml", "--config", "file name too long")
    check_end(run(program, [*command, "--config", str(path)], parsing(program)), program, *culprits, alone=True)


def words(world: World, data: st.DataObject) -> None:
    """Anything on the command line."""
    program = data.draw(st.sampled_from(sorted(PROGRAMS)))
    commands = PROGRAMS[program][1]
    command = data.draw(st.sampled_from(sorted(commands)) | st.text(max_size=9)).split(" ")
    flags = ["--config", "--output", "--seed", "--data.path", "--a.b", "--", "-", "--config=", "--max_steps="]
    word = st.sampled_from([*flags, "", "a" * 5000, "[[[", "{", "\0"]) | st.text(max_size=9)
    given = data.draw(st.lists(word, max_size=4))
    world.fresh()
    given = [word.replace("\0", "") for word in given]  # no system hands such a character over
    try:
        ended = run(program, [*command, *given], parsing(program))
    except SystemExit as stop:
        raise AssertionError(f"SystemExit {stop.code}") from stop
    check_end(ended, program)


def studies(world: World, data: st.DataObject) -> None:
    """A study file with one key changed."""
    content, names = data.draw(mutated(data.draw(st.sampled_from(STUDIES))))
    path = world.fresh() / "study.yaml"
    path.write_text(_as_yaml(content), encoding="utf-8")
    command = ["study", "plan", str(path), "--output", str(path.parent / "out"), "--check", "false"]
    ended = run("clips-bench", command)
    # a path that `paths` defines no longer is named where it is used; permissions are those of a file in a named folder
    others = ("unknown path in step", "study.yaml", "permission denied", "file name too long")
    check_end(ended, "clips-bench", *names, *others)
    assert not (path.parent / "out").exists()


def results(world: World, data: st.DataObject) -> None:
    """A result file with one key changed, or damaged, or its items."""
    place = world.fresh() / "results"
    shutil.copytree(world.results, place)
    row, benchmark = data.draw(st.sampled_from(["clip", "clips"])), data.draw(st.sampled_from(["gqa", "pope"]))
    path = place / row / f"{benchmark}.json"
    kind = data.draw(st.sampled_from(["key", "key", "bytes", "items"]))
    names: tuple[str, ...] = ()
    if kind == "key":
        content, names = data.draw(mutated(json.loads(path.read_text())))
        path.write_text(json.dumps(content))
    elif kind == "bytes":
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    else:
        items = path.with_name(f"{benchmark}.items.parquet")
        items.write_bytes(data.draw(damaged(items.read_bytes())))
    pair = [str(place / "clip" / f"{benchmark}.json"), str(place / "clips" / f"{benchmark}.json")]
    output = str(place.parent / "report")
    models = [str(place / "clip"), str(place / "clips")]
    report = ["report", str(place), "--output", output, "--formats=[csv,wide,pairs,markdown,latex]"]
    command = data.draw(st.sampled_from([["compare", *pair], ["compare", *models], ["provenance", str(path)], report]))
    ended = run("clips-bench", command)
    check_end(ended, "clips-bench", f"{row}/{benchmark}.json", f"{benchmark}.items.parquet", *names)
    check_nothing_left(place.parent)


def manifests(world: World, data: st.DataObject) -> None:
    """The manifest of shards, changed or damaged."""
    place = world.fresh() / "shards"
    shutil.copytree(world.shards, place)
    files = {"shard-00000.tar": {"size": 1, "modified_ns": 1, "hash": "a" * 64}}
    manifest = {"kind": "captions", "hash": "b" * 64, "files": files, "parents": {}, "config": {"path": "a"}}
    path = place / "manifest.json"
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(mutated(manifest))[0]))
    else:
        path.write_bytes(data.draw(damaged(json.dumps(manifest).encode())))
    ended = run("clips", ["data", "inspect", str(place)])
    check_end(ended, "clips", "manifest.json")
    _check_output(ended, place.parent)


def shards(world: World, data: st.DataObject) -> None:
    """Shards whose captions, images or bytes are anything."""
    place = world.fresh() / "shards"
    place.mkdir()
    kind = data.draw(st.sampled_from(["captions", "json", "picture", "names", "tar"]))
    samples = {f"{index:09d}": clips_world.sample(index) for index in range(3)}
    one = samples["000000001"]
    if kind == "captions":
        captions = data.draw(st.dictionaries(st.sampled_from(["web_caption", "synthetic_caption"]), CAPTIONS | PLAIN))
        one["json"] = json.dumps(captions).encode()
    elif kind == "json":
        one["json"] = data.draw(damaged(one["json"]))
    elif kind == "picture":
        end = next(name for name in one if name != "json")
        one[end] = data.draw(damaged(data.draw(st.sampled_from(world.pictures))))
    elif kind == "names":
        samples[data.draw(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))] = one
    _write_tar(place / "shard-00000.tar", samples)
    if kind == "tar":
        path = place / "shard-00000.tar"
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    ended = run("clips", ["data", "inspect", str(place)])
    check_end(ended, "clips", "shard-00000.tar", "shards")  # without samples the directory
    _check_output(ended, place.parent)


def _check_output(ended: Ended, folder: Path) -> None:
    check_nothing_left(folder)
    assert "\x1b" not in ended.out


def _write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for end, content in files.items():
                member = tarfile.TarInfo(f"{key}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def tables(world: World, data: st.DataObject) -> None:
    """Tables of images and captions: anything in their cells, or damaged files."""
    place = world.fresh()
    shutil.copytree(world.folder / "images", place / "images")
    end = data.draw(st.sampled_from(["parquet", "jsonl", "csv", "tsv"]))
    path = place / f"table.{end}"
    texts = CAPTIONS.map(lambda text: text.encode("utf-8", "replace").decode()[:5000])
    cells = st.lists(texts, min_size=2, max_size=2)
    pictures = st.lists(
        st.sampled_from(["images/a.png", "../a", "pipe:false", "file:///etc/passwd", "", "http://[", "a::b"]) | texts,
        min_size=2,
        max_size=2,
    )
    frame = pd.DataFrame({"image": data.draw(pictures), "web": data.draw(cells), "synthetic": data.draw(cells)})
    if end == "parquet":
        frame.to_parquet(path)
    elif end == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="," if end == "csv" else "\t", escapechar="\\")
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    fields = ["--format=table", "--image_column=image", "--web_caption=web"]
    fields += ["--synthetic_caption=synthetic", f"--image_root={place}"]
    ended = run("clips", ["data", "inspect", str(path), *fields])
    check_end(ended, "clips", path.name)
    _check_output(ended, place)


def conversations(world: World, data: st.DataObject) -> None:
    """LLaVA's JSON and Karpathy's with one part changed, or damaged."""
    from clips.errors import UserError
    from llava_bridge.data import ConversationSourceConfig
    from llava_bridge.data.sources import read_samples

    place = world.fresh()
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cup"}]
    sentence = {"raw": "a cup"}
    layouts: dict[str, Any] = {
        "llava": [{"id": "1", "image": "a.png", "conversations": turns}] * 2,
        "conversations": [{"images": ["a.png"], "conversations": turns}] * 2,
        "karpathy": {"images": [{"filename": "a.png", "split": "train", "sentences": [sentence]}]},
        "cocoqa": [{"image": "a.png", "question": "what", "answer": "cup"}],
    }
    source = data.draw(st.sampled_from(sorted(layouts)))
    content = data.draw(mutated(layouts[source]))[0]
    lines = source == "cocoqa" and isinstance(content, list)
    text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
    path = place / "talk.json"
    path.write_bytes(data.draw(damaged(text.encode())) if data.draw(st.booleans()) else text.encode())
    config = ConversationSourceConfig(path=str(path), format=source, image_root=str(world.folder / "images"))
    samples, refused = attempt(lambda: read_samples(config), UserError)
    if refused is not None:
        check_rejection(refused, "talk.json")
    for sample in samples or ():
        "".join(turn.content for turn in sample.turns).encode()
        for picture in sample.images:
            with contextlib.suppress(UserError):
                assert picture.open().mode == "RGB"


def benchmark_data(world: World, data: st.DataObject) -> None:
    """Files of captions, pairs and answers of benchmarks with one part changed, or damaged."""
    from benchmarks.tasks.data.caption_sets import load_caption_set
    from benchmarks.tasks.data.pair_sets import load_pair_set
    from benchmarks.tasks.mllm.matching import read_answers
    from clips.data.formats import DatasetSpec
    from clips.errors import UserError

    sentence = {"raw": "a cup"}
    pair = {"image": "a.png", "caption": "a cup", "negative": ["a dog"], "kind": "object"}
    row = {"question_id": "1", "image": "a.png", "prompt": "What?", "answer": "a cup"}
    sample = {
        "doc_id": 0,
        "target": "yes",
        "resps": [["Yes"]],
        "filtered_resps": ["Yes"],
        "doc": {"question": "Is it?"},
    }
    layouts: dict[str, Any] = {
        "karpathy": {"images": [{"filename": "a.png", "split": "test", "imgid": 0, "sentences": [sentence]}] * 2},
        "coco": {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"image_id": 1, "id": 3, "caption": "a cup"}],
        },
        "table": [{"image": "a.png", "caption": "a cup"}] * 2,
        "pairs": [pair] * 2,
        "answers": [row, {"question_id": 2, "text": "yes", "prompt": "Is it?"}],
        "samples": [sample] * 2,
    }
    kind = data.draw(st.sampled_from(sorted(layouts)))
    content = data.draw(mutated(layouts[kind]))[0]
    lines = isinstance(layouts[kind], list)
    text = "".join(json.dumps(each) + "\n" for each in content) if lines else json.dumps(content)
    path = world.fresh() / f"data.{'jsonl' if lines else 'json'}"
    path.write_bytes(data.draw(damaged(text.encode())) if data.draw(st.booleans()) else text.encode())

    def read() -> None:
        if kind in {"answers", "samples"}:
            read_answers(path)
        elif kind == "pairs":
            load_pair_set(str(path), "jsonl", images=str(world.folder / "images"))
        else:
            load_caption_set(
                DatasetSpec(path=str(path), format=kind, split="test", image_root=str(world.folder / "images"))
            )

    _, refused = attempt(read, UserError)
    if refused is not None:
        check_rejection(refused, path.name)


def imports(world: World, data: st.DataObject) -> None:
    """A results file of lmms-eval and its samples with one part changed, or damaged."""
    place = world.fresh()
    pope = {"pope_accuracy,none": 0.5, "pope_accuracy_stderr,none": 0.1, "pope_f1_score,none": 0.4, "alias": "pope"}
    content: Any = {
        "results": {"pope": pope},
        "configs": {
            "pope": {"task": "pope", "dataset_path": "lmms-lab/POPE", "metric_list": [{"metric": "pope_accuracy"}]}
        },
        "versions": {"pope": 0.0},
        "n-shot": {"pope": 0},
        "higher_is_better": {"pope": {"pope_accuracy": True, "pope_f1_score": True}},
        "n-samples": {"pope": {"original": 2, "effective": 2}},
        "config": {"model": "llava", "model_args": "pretrained=llava"},
        "model_name": "llava",
        "date": "20260101_000000",
    }
    content, names = data.draw(mutated(content))
    text = json.dumps(content).encode()
    path = place / "20260101_000000_results.json"
    path.write_bytes(data.draw(damaged(text)) if data.draw(st.sampled_from([False, False, True])) else text)
    ended = run("clips-bench", ["import", str(path), "--output", str(place / "results"), "--model_name", "a"])
    check_end(ended, "clips-bench", path.name, *names)
    check_nothing_left(place)


_SHARDS = "--data.sources=[{path: shards}]"
_ALIGN = "train --stages [align] --align.data=[{path: talk.json}]"
OPENED: dict[str, list[tuple[str, str]]] = {
    "clips": [
        ("data inspect {}", "path"),
        ("data inspect {} --format table", "path"),
        ("data inspect {} --format karpathy", "path"),
        ("data inspect {} --format coco", "path"),
        ("data index {}", "path"),
        ("import {} --output out", "path"),
        ("import {} --output out --architecture ViT-B-32", "path"),
        ("export {} --output out", "checkpoint"),
        ("train --config {}", "config"),
        (f"train --output {{}} --max_steps 1 {_SHARDS}", "output"),
        ("train --output out --max_steps 1 --data.sources=[{path: {}}]", "path|sources"),
        (f"train --output out --max_steps 1 {_SHARDS} --model.pretrained {{}}", "pretrained"),
        ("recaption {} --model m --output out", "path"),
        ("recaption shards --model {} --output out", "model"),
    ],
    "llava-bridge": [
        ("data inspect {} --llm a", "path|llm"),
        ("data inspect {} --format conversations --llm a", "path|llm"),
        ("data inspect talk.json --llm {}", "llm|talk.json"),
        ("convert {} --output out", "source"),
        ("chat {} --prompt a", "model"),
        ("swap {} --encoder a --output out", "llava"),
        ("train --config {}", "config"),
        (f"{_ALIGN} --output out --encoder {{}} --llm b", "encoder|llm"),
        (f"{_ALIGN} --output {{}} --encoder a --llm b", "output|llm"),
        (f"{_ALIGN} --output out --llava {{}}", "llava"),
    ],
    "clips-bench": [
        ("run encoder {} --benchmarks=[{name: retrieval, data: shards}] --output out", "model|encoder"),
        ("run encoder a --benchmarks=[{name: retrieval, data: {}}] --output out", "data|encoder"),
        ("report {}", "directory"),
        ("report results --output {}", "output"),
        ("compare {} results/clip", "first"),
        ("diff {} results/clip/pope.json", "first"),
        ("provenance {}", "result"),
        ("import {} --output out", "files"),
        ("score --task pope --answers {} --data . --output out --model_name a", "answers|data"),
        ("study plan {}", "study"),
        ("study status {}", "study"),
        ("study power {} --difference 1", "study"),
    ],
}
"""Program → words with ``{}`` for what is opened, and the fields of which the line may name one."""
_ENDS = ("", ".json", ".jsonl", ".yaml", ".tar", ".parquet", ".csv", ".safetensors", ".pt")


def paths(world: World, data: st.DataObject) -> None:
    """What is no file or directory of the expected kind, in place of a path, and what is no path at all."""
    program = data.draw(st.sampled_from(sorted(OPENED)))
    words, field = data.draw(st.sampled_from(OPENED[program]))
    place = world.fresh()
    for name in ("shards", "results"):
        shutil.copytree(getattr(world, name), place / name)
    (place / "talk.json").write_text("[]")
    odd = place / f"odd{data.draw(st.sampled_from(_ENDS))}"
    kinds = [
        "pipe",
        "empty",
        "zeros",
        "directory",
        "loop",
        "dangling",
        "absent",
        "below",
        "long",
        "longer",
        "bytes",
    ]
    kind = data.draw(st.sampled_from([*kinds, "mapping", "list", "nothing"]))
    given: str = {"below": f"{odd}/a", "long": f"{odd}-{'x' * 300}", "longer": f"{odd}-{'x/' * 3000}"}.get(
        kind, str(odd)
    )
    given = {"bytes": f"{odd}-\udcff", "mapping": "{a: b}", "list": "[a]", "nothing": ""}.get(kind, given)
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind in {"empty", "below"}:
        odd.touch()
    elif kind == "zeros":
        odd.write_bytes(bytes(4096))
    elif kind == "directory":
        odd.mkdir()
    elif kind in {"loop", "dangling"}:
        odd.symlink_to(odd if kind == "loop" else place / "gone")
    with contextlib.chdir(place):
        ended = run(program, [word.replace("{}", given) for word in re.findall(r"--\S+=\[.*?\](?= |$)|\S+", words)])
    culprits = (odd.name, given[:100], *field.split("|"))
    check_end(ended, program, *(() if kind == "nothing" else culprits))
    (place / "sizes.json.partial").unlink(missing_ok=True)  # from which `data index` resumes
    check_nothing_left(place)


def images(world: World, data: st.DataObject) -> None:
    """Damaged images become RGB or a reason."""
    from clips.data.images import InvalidImageError, decode_image

    content = data.draw(damaged(data.draw(st.sampled_from(world.pictures))))
    least = data.draw(st.sampled_from([None, 8]))
    image, refused = attempt(lambda: decode_image(content, at_least=least), InvalidImageError)
    assert str(refused) if image is None else image.mode == "RGB"


def captions(world: World, data: st.DataObject) -> None:
    """Any caption can be shortened and tokenized."""
    import numpy as np

    from clips.method.caption_strategies import STRATEGIES
    from clips.model.tokenizer import ClipsTokenizer

    text = data.draw(CAPTIONS)
    strategy = data.draw(st.sampled_from(sorted(STRATEGIES)))
    short = STRATEGIES[strategy](text, np.random.default_rng(0), 9)
    tokenizer = ClipsTokenizer(12)
    assert tokenizer([text, short]).shape == (2, 12)
    assert tokenizer.encode_target([text]).shape == (1, 128)
    tokenizer.decode(tokenizer([text])[0]).encode()


@dataclasses.dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Args:
        check: draws an input, and asserts.
        share: of the inputs, relative to the others.
        quick: how many inputs the short tests give it.
    """

    check: Callable[[World, st.DataObject], None]
    share: float
    quick: int


TARGETS = {
    "configs": Target(configs, share=25, quick=10),
    "words": Target(words, share=8, quick=15),
    "studies": Target(studies, share=15, quick=3),
    "results": Target(results, share=10, quick=4),
    "manifests": Target(manifests, share=5, quick=2),
    "shards": Target(shards, share=10, quick=6),
    "tables": Target(tables, share=5, quick=2),
    "conversations": Target(conversations, share=10, quick=40),
    "benchmark_data": Target(benchmark_data, share=10, quick=30),
    "imports": Target(imports, share=5, quick=5),
    "paths": Target(paths, share=15, quick=15),
    "pictures": Target(images, share=10, quick=40),
    "captions": Target(captions, share=5, quick=6),
}
