"""The scenes directory: shards, LLaVA's files, lmms-eval's benchmarks."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from clips.commandline.commands import Command, dispatch
from clips.core.artifact import directory_hash, read_manifest
from clips.errors import UserError
from clips.scenes import BenchmarkRows, ScenesConfig, generate_scenes
from clips.scenes.questions import ONE_SENTENCE, SHORT_ANSWER

TRAIN = {"num_scenes": 25, "shard_size": 10, "image_size": 48}
SIZES = BenchmarkRows(pope=36, mme=60, gqa=30, textvqa=10, nocaps=12)


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "train"
    generate_scenes(ScenesConfig(output=str(out), **TRAIN))
    return out


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "test"
    fields = {"split": "test", "num_scenes": 120, "image_size": 48, "image_format": "webp"}
    generate_scenes(ScenesConfig(output=str(out), benchmarks=SIZES, **fields))
    return out


def test_shards_have_images_and_captions(train):
    shards = sorted(train.glob("*.tar"))
    assert [shard.name for shard in shards] == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    names = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member).read()
                names.append(member.name)
                if member.name.endswith(".json"):
                    sample = json.loads(content)
                    assert set(sample) == {"web_caption", "synthetic_caption", "captions", "scene"}
                    assert len(sample["captions"]) == 5
                    assert sample["scene"]["objects"][0]["kind"]
                else:
                    assert Image.open(io.BytesIO(content)).size == (48, 48)
    assert names == [f"{index:09d}.{ending}" for index in range(25) for ending in ("png", "json")]
    assert not (train / "hub").exists()


def test_llava_files_refer_to_the_images(train):
    for name in ("llava_align.json", "llava_instruct.json"):
        records = json.loads((train / name).read_text())
        assert len(records) == 25
        for record in records:
            shard, member = record["image"].split("/")
            with tarfile.open(train / shard) as tar:
                assert tar.getmember(member).size > 0
            assert member == f"{record['id']}.png"
    records = json.loads((train / "llava_text.json").read_text())
    assert len(records) == 25
    assert not any("image" in record or "<image>" in str(record) for record in records)


def test_two_runs_write_the_same_bytes(train, tmp_path):
    generate_scenes(ScenesConfig(output=str(tmp_path / "again"), **TRAIN))
    assert directory_hash(tmp_path / "again") == directory_hash(train)
    manifest = read_manifest(train)
    assert manifest["kind"] == "scenes"
    assert manifest["config"]["num_scenes"] == 25


def read(folder: Path, dataset: str, split: str):
    import pandas

    return pandas.read_parquet(folder / "hub/lmms-lab-encoder" / dataset / "data" / f"{split}-00000-of-00001.parquet")


def test_pope_is_balanced_and_mme_has_two_rows_for_each_fact(benchmarked):
    rows = read(benchmarked, "POPE", "test")
    assert len(rows) == 36
    cells = itertools.product(("random", "popular", "adversarial"), ("yes", "no"))
    assert Counter(zip(rows.category, rows.answer, strict=True)) == Counter(dict.fromkeys(cells, 6))
    assert rows.question_id.is_unique
    rows = read(benchmarked, "MME", "test")
    assert len(rows) == 60
    assert (rows.groupby(["category", "question_id"]).answer.apply(sorted).apply(tuple) == ("No", "Yes")).all()
    categories = ["OCR", "color", "commonsense_reasoning", "count", "existence", "position", "scene"]
    assert sorted(set(rows.category)) == categories
    assert rows.question.str.endswith(" Please answer yes or no.").all()
    counts = read_manifest(benchmarked)["benchmarks"]
    assert [counts[name] for name in ("pope", "mme", "gqa", "textvqa", "nocaps")] == [36, 60, 30, 10, 12]


def test_a_benchmark_can_be_left_out(tmp_path):
    sizes = BenchmarkRows(pope=6, mme=0, gqa=0, textvqa=0, nocaps=0)
    generate_scenes(ScenesConfig(output=str(tmp_path / "s"), split="test", num_scenes=3, benchmarks=sizes))
    assert [path.name for path in (tmp_path / "s/hub/lmms-lab-encoder").iterdir()] == ["POPE"]


@pytest.mark.filterwarnings("ignore")  # lmms-eval's imports warn
def test_lmms_eval_reads_and_scores_every_row(benchmarked, monkeypatch, tmp_path):
    """lmms-eval's own functions, on rows that the datasets library loads by the tasks' own names."""
    datasets = pytest.importorskip("datasets")
    from lmms_eval.tasks.gqa import utils as gqa
    from lmms_eval.tasks.mme import utils as mme
    from lmms_eval.tasks.nocaps import utils as nocaps
    from lmms_eval.tasks.pope import utils as pope
    from lmms_eval.tasks.textvqa import utils as textvqa

    monkeypatch.chdir(benchmarked / "hub")
    default = {"pre_prompt": "", "post_prompt": SHORT_ANSWER}

    def load(name: str, split: str, config: str | None = None):
        return datasets.load_dataset(f"lmms-lab-encoder/{name}", config, split=split, cache_dir=str(tmp_path))

    rows = load("POPE", "test")
    assert pope.pope_doc_to_visual(rows[0])[0].size == (48, 48)
    assert pope.pope_doc_to_text(rows[0], default).endswith("in the image?" + SHORT_ANSWER)
    results = [pope.pope_process_results(row, [row["answer"]])["pope_accuracy"] for row in rows]
    assert pope.pope_aggregate_accuracy(results) == 1
    assert pope.pope_aggregate_yes_ratio(results) == 0.5

    rows = load("MME", "test")
    assert mme.mme_doc_to_visual(rows[0])[0].mode == "RGB"
    assert mme.mme_doc_to_text(rows[0], default).endswith("?" + SHORT_ANSWER)
    scores = [mme.mme_process_results(row, [row["answer"]]) for row in rows]
    perception = [score["mme_perception_score"] for score in scores if "mme_perception_score" in score]
    cognition = [score["mme_cognition_score"] for score in scores if "mme_cognition_score" in score]
    assert mme.mme_aggregate_results(perception) == 6 * 200
    assert mme.mme_aggregate_results(cognition) == 200

    rows = load("GQA", "testdev", "testdev_balanced_instructions")
    images = {row["id"]: row["image"] for row in load("GQA", "testdev", "testdev_balanced_images")}
    assert {row["imageId"] for row in rows} == set(images)
    assert gqa.gqa_doc_to_visual({"image": images[rows[0]["imageId"]]})[0].size == (48, 48)
    assert gqa.gqa_doc_to_text(rows[0], default).endswith("?" + SHORT_ANSWER)

    rows = load("textvqa", "validation")
    assert textvqa.textvqa_doc_to_text(rows[0], default)[0] == "W"
    assert all(textvqa.textvqa_process_results(row, [row["answers"][0]])["exact_match"] == 1 for row in rows)
    assert textvqa.textvqa_process_results(rows[0], ["nothing"])["exact_match"] == 0

    rows = load("NoCaps", "validation")
    assert nocaps.nocaps_doc_to_text(rows[0], {"prompt": ONE_SENTENCE}) == ONE_SENTENCE
    scored = nocaps.nocaps_process_result(rows[3], ["a dog"])["nocaps_CIDEr"]
    assert scored["image_id"] == 3
    assert len(scored["answer"]) == 5


def test_prompts_are_those_of_lmms_eval():
    from importlib.util import find_spec

    tasks = Path(find_spec("lmms_eval").origin).parent / "tasks"
    for file in ("pope/pope.yaml", "mme/mme.yaml", "gqa/gqa.yaml", "textvqa/_default_template_textvqa_yaml"):
        assert f'post_prompt: "{SHORT_ANSWER}"'.replace("\n", "\\n") in (tasks / file).read_text()
    assert f'prompt: "{ONE_SENTENCE}"' in (tasks / "nocaps/_default_template_nocaps_yaml").read_text()


def test_only_scenes_are_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty, and not an artifact of kind 'scenes'"):
        generate_scenes(ScenesConfig(output=str(tmp_path), num_scenes=3))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_command_reads_yaml_and_rejects_mistakes(tmp_path, capsys):
    commands = {"scenes": Command(help="…", target="clips.scenes.generate:generate_scenes")}
    config = tmp_path / "scenes.yaml"
    config.write_text(f"output: {tmp_path / 'out'}\nnum_scenes: 3\nimage_format: jpg\nbenchmarks: {{pope: 6}}\n")
    assert dispatch("clips", "", commands, ["scenes", "--config", str(config)]) == 0
    with tarfile.open(tmp_path / "out/shard-00000.tar") as tar:
        assert "000000002.jpg" in tar.getnames()
    assert dispatch("clips", "", commands, ["scenes", "--config", str(config), "--num_object_clases", "9"]) == 2
    assert "did you mean 'num_object_classes'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [({"num_scenes": 0}, "num_scenes: expected 1"), ({"questions_per_image": 0}, "questions_per_image: expected 1")],
)
def test_bad_configs(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        ScenesConfig(output="x", **fields)


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clips.scenes.generate.encode_image", fail)
    with pytest.raises(OSError, match="No space"):
        generate_scenes(ScenesConfig(output=str(tmp_path / "s"), num_scenes=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "least"), [("pope", 6), ("mme", 2)])
def test_incomplete_groups_of_rows_are_rejected(name, least):
    assert getattr(BenchmarkRows(**{name: 0}), name) == 0
    assert getattr(BenchmarkRows(**{name: least}), name) == least
    with pytest.raises(UserError, match=f"benchmarks.{name}: expected 0 or at least {least}, got {least - 1}"):
        BenchmarkRows(**{name: least - 1})
