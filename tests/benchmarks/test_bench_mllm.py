"""MLLM benchmarks: lmms-eval's tasks and scorers over local data, against hand-made answers and lmms-eval itself."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_world as world
import pytest
from PIL import Image

from benchmarks.results.results import Result, read_items, read_result, result_path
from benchmarks.tasks import run_benchmarks
from benchmarks.tasks.mllm import evaluate_task, offline_tasks
from benchmarks.tasks.registry import BenchmarkConfig, configure
from clips.commandline.signals import EXIT_INTERRUPTED
from clips.core.identity import digest
from clips.errors import UserError
from llava_bridge import load_llava, loglikelihoods

TASKS = ("pope", "mme", "gqa", "textvqa_val", "nocaps_val")
PICTURES = 6

pytestmark = world.LMMS_EVAL_WARNS


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to reach another machine fails the test."""

    def raise_error(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a benchmark tried to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", raise_error)


def _run(places: Path, results: Path, *benchmarks: BenchmarkConfig, **changes) -> dict[str, Result]:
    found = world.measure(results, *benchmarks, llava=places / "llava", **changes)
    return {each.benchmark: each for each in (found if len(benchmarks) > 1 else [found])}


def _all(places: Path, *tasks: str, **changes) -> list[BenchmarkConfig]:
    """Benchmarks on the shared data root, without METEOR, whose Java program takes seconds to start."""
    found = []
    for task in tasks or TASKS:
        without = {"exclude_metrics": ("nocaps_METEOR",)} if task == "nocaps_val" else {}
        found.append(configure(name=task, data=str(places / "hub"), max_new_tokens=6, **without | changes))
    return found


def _answering(monkeypatch: pytest.MonkeyPatch, reply) -> None:
    """Let ``reply(number of the image, prompt)`` answer in the model's place."""
    numbers = {world.draw_image(number).tobytes(): number for number in range(PICTURES)}

    def answer_batches(model, processor, images, prompts, max_new_tokens, batch_size):
        for place, (shown, prompt) in enumerate(zip(images, prompts, strict=True)):
            yield {place: reply(numbers[shown[0].tobytes()], prompt)}

    monkeypatch.setattr("llava_bridge.inference.generate.iter_answer_batches", answer_batches)


def _knows_all(number: int, prompt: str) -> str:
    if "Is there" in prompt:
        return "Yes" if world.color(number) in prompt else "No"
    return world.captions(number)[0] if "caption" in prompt else world.color(number)


def test_right_answers_get_full_marks(places, tmp_path, monkeypatch):
    _answering(monkeypatch, _knows_all)
    found = _run(places, tmp_path, *_all(places))
    values = {(task, name): metric.value for task, result in found.items() for name, metric in result.metrics.items()}
    assert values["pope", "pope_accuracy"] == values["pope", "pope_f1_score"] == 1.0
    assert values["pope", "said_yes"] == 0.5
    assert values["mme", "mme_perception_score"] == values["mme", "mme_total"] == 400.0  # two categories
    assert values["gqa", "exact_match"] == 1.0
    assert values["textvqa_val", "exact_match"] == 1.0  # seven of ten say so
    assert values["nocaps_val", "nocaps_Bleu_4"] == pytest.approx(1.0)
    assert values["nocaps_val", "nocaps_ROUGE_L"] == pytest.approx(1.0)
    assert values["nocaps_val", "nocaps_CIDEr"] > 3
    assert found["mme"].missing_metrics == {"mme_cognition_score": "no question of this data enters it"}
    assert found["pope"].primary == ["pope_accuracy", "pope_f1_score"]


def test_reasoning_is_no_part_of_the_answer(places, tmp_path, monkeypatch):
    """As for lmms-eval's command: of this suite's LLaVA and of lmms-eval's own models."""
    from benchmarks.tasks.eval_model import LmmsModel
    from benchmarks.tasks.mllm.llava_model import RecordedAnswersModel

    _answering(monkeypatch, lambda number, prompt: f"<think>No. Yes?</think>\n{_knows_all(number, prompt)}")
    pope = _all(places, "pope")[0]
    found = _run(places, tmp_path, pope)["pope"]
    assert found.metrics["pope_accuracy"].value == 1.0
    said = dict(enumerate(f"<analysis>no</analysis>{answer}" for answer in read_items(found)["target"]))
    monkeypatch.setattr("benchmarks.tasks.eval_model.load_lmms_model", lambda _: RecordedAnswersModel(said))
    theirs = world.measure(tmp_path / "lmms", pope, lmms=LmmsModel(model="llava_hf"))
    assert theirs.metrics["pope_accuracy"].value == 1.0


def test_half_right_answers_by_hand(places, tmp_path, monkeypatch):
    """It says yes to everything, names red for any image, and captions one image with nothing."""

    def reply(number: int, prompt: str) -> str:
        if "Is there" in prompt:
            return "yes"
        return ("" if number == 0 else world.captions(number)[0]) if "caption" in prompt else "Red."

    _answering(monkeypatch, reply)
    found = _run(places, tmp_path, *_all(places))
    pope = found["pope"].metrics
    assert (pope["pope_accuracy"].value, pope["pope_precision"].value, pope["pope_recall"].value) == (0.5, 0.5, 1.0)
    assert pope["pope_f1_score"].value == pytest.approx(2 / 3)
    assert (pope["pope_accuracy"].n, pope["pope_accuracy"].clusters) == (12, 6)
    # in every pair one answer is right: 50 points for accuracy, none for both, in each of two categories
    assert found["mme"].metrics["mme_perception_score"].value == 100.0
    red = sum(world.color(number) == "red" for number in range(PICTURES))
    assert found["gqa"].metrics["exact_match"].value == pytest.approx(red / PICTURES)
    assert found["textvqa_val"].metrics["exact_match"].value == pytest.approx(red / PICTURES)
    expected = read_items(found["textvqa_val"])["target"]
    assert [answers.split(" | ")[0] for answers in expected] == [world.color(number) for number in range(PICTURES)]
    captions = read_items(found["nocaps_val"]).set_index("image")
    assert captions["cider"].min() == 0.0
    assert found["nocaps_val"].metrics["nocaps_CIDEr"].value == pytest.approx(captions["cider"].mean())


def test_beams_reach_the_search_and_the_protocol(places, tmp_path, monkeypatch):
    found = []

    def answer_batches(model, processor, images, prompts, max_new_tokens, batch_size, **generation):
        found.append(generation)
        yield dict.fromkeys(range(len(prompts)), "a red square")

    monkeypatch.setattr("llava_bridge.inference.generate.iter_answer_batches", answer_batches)
    keyed: list[list[str]] = []
    monkeypatch.setattr(run_benchmarks, "digest", lambda value: keyed.append(list(value)) or digest(value))
    (greedy,) = _all(places, "nocaps_val")
    beams = dataclasses.replace(greedy, name="beams", task="nocaps_val", num_beams=3)
    results = _run(places, tmp_path, greedy, beams)
    assert found == [{}, {"num_beams": 3}]  # the second has no cached answers
    assert ["num_beams" in each for each in keyed] == [False, False, True, True]  # of results, and of former ones
    decoding = [results[name].protocol["decoding"] for name in ("nocaps_val", "beams")]
    assert ['"num_beams": 1' in decoding[0], '"num_beams": 3' in decoding[1]] == [True, True]


def test_a_task_without_generated_answers_has_no_beams():
    task = SimpleNamespace(config=SimpleNamespace(output_type="multiple_choice", generation_kwargs=None))
    settings = [configure(name="some", task="mmmu_val", data="data", num_beams=beams) for beams in (None, 2)]
    entry = SimpleNamespace(max_new_tokens=4)
    assert evaluate_task.generation_settings(task, entry, settings[0]) == {"max_new_tokens": 4}
    with pytest.raises(UserError, match=r"^benchmarks\.some\.num_beams: expected a task with generated answers"):
        evaluate_task.generation_settings(task, entry, settings[1])


def test_items_protocol_and_intervals(places, tmp_path, monkeypatch):
    _answering(monkeypatch, lambda number, prompt: _knows_all(max(number, 1), prompt))  # takes image 0 for 1
    found = _run(places, tmp_path, *_all(places))
    for task, result in found.items():
        items = world.check_formulas(result)
        assert items["image"].nunique() == items["thumbnail"].notna().sum() == PICTURES
        assert Image.open(io.BytesIO(items["thumbnail"].iloc[0])).size == (64, 64)
        for name, metric in result.metrics.items():
            if metric.ci_low is None:  # no image differs from another by more than the metric lets through
                assert metric.ci_method == "none", (task, name)
            else:
                assert metric.ci_low - 1e-9 <= metric.value <= metric.ci_high + 1e-9, (task, name)
        assert (result.protocol["questions"], result.protocol["input_resolution"]) == (len(items), 32)
        assert result.protocol["input_tokens"] == 16
        assert '"max_new_tokens": 6' in result.protocol["decoding"]
    pope = read_items(found["pope"])
    first = pope[["question", "prediction", "target"]].iloc[0].tolist()
    assert first == ["Is there a red square in the picture?", "No", "yes"]
    assert pope["score"].tolist() == [0.0, 0.0] + [1.0] * 10  # and the pair of image 0 in the categories
    assert pope["category"].unique().tolist() == ["random", "popular"]
    assert read_items(found["gqa"])["target"].tolist() == [world.color(number) for number in range(PICTURES)]


def test_the_same_task_over_two_roots_sees_each_root_s_own_data(places, tmp_path, monkeypatch):
    world.write_hub(tmp_path / "smaller", 3)
    _answering(monkeypatch, _knows_all)
    found = _run(
        places,
        tmp_path / "results",
        configure(name="big", task="gqa", data=str(places / "hub")),
        configure(name="small", task="gqa", data=str(tmp_path / "smaller")),
    )
    assert len(read_items(found["big"])) == PICTURES
    assert len(read_items(found["small"])) == 3
    assert found["big"].protocol["data_hash"] != found["small"].protocol["data_hash"]


def test_real_model_batches_do_not_change_answers(places, tmp_path):
    tasks = ("pope", "nocaps_val")
    alone, together = (
        _run(places, tmp_path / str(size), *_all(places, *tasks, limit=4), batch_size=size) for size in (1, 8)
    )
    for task in tasks:
        first, second = (read_items(each[task]) for each in (alone, together))
        assert len(first) == 4
        assert first["prediction"].tolist() == second["prediction"].tolist(), task
        assert alone[task].fingerprint == together[task].fingerprint
    assert any(read_items(together[task])["prediction"].str.len().gt(0).any() for task in tasks)


@pytest.mark.slow
def test_equal_to_lmms_eval_s_own_command(places, tmp_path):
    """``python -m lmms_eval --model llava_bridge`` gives the same answers and the same numbers."""
    caches = dict.fromkeys(("HF_DATASETS_CACHE", "LMMS_EVAL_DATASETS_CACHE"), str(tmp_path / "cache"))
    environment = os.environ | caches | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    tasks = ("pope", "mme", "gqa", "textvqa_val", "mmmu_val", "chartqa")
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_bridge", "--batch_size", "8", "--log_samples"]
    command += ["--model_args", f"pretrained={places / 'llava'}", "--gen_kwargs", "max_new_tokens=6"]
    command += ["--tasks", ",".join(tasks), "--output_path", str(tmp_path / "direct")]
    done = subprocess.run(command, cwd=places / "hub", env=environment, capture_output=True, text=True, check=False)
    files = list((tmp_path / "direct").rglob("*_results.json"))
    assert files, done.stderr[-3000:]
    direct = json.loads(files[0].read_text())["results"]
    ours = _run(places, tmp_path / "ours", *_all(places, *tasks), batch_size=3)
    compared = 0
    for task, result in ours.items():
        for key, value in direct[task].items():
            name = key.partition(",")[0]
            if name in result.metrics:
                assert result.metrics[name].value == pytest.approx(value), (task, name)
                compared += 1
        (samples,) = (tmp_path / "direct").rglob(f"*_samples_{task}.jsonl")
        rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        answers = [row["filtered_resps"] for row in rows]  # one string a question
        assert read_items(result)["prediction"].tolist() == answers, task
    assert compared >= 12


@pytest.mark.parametrize("beside_java", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_java_only_meteor_is_missing(places, tmp_path, monkeypatch, beside_java):
    from benchmarks.tasks.mllm import caption_metrics

    _answering(monkeypatch, _knows_all)
    (task,) = _all(places, "nocaps_val", exclude_metrics=())
    if beside_java and caption_metrics.is_java_available():
        with_java = _run(places, tmp_path / "with", task)["nocaps_val"]
        assert 0.9 < with_java.metrics["nocaps_METEOR"].value <= 1.0
    monkeypatch.setenv("PATH", str(tmp_path))
    caption_metrics.is_java_available.cache_clear()
    try:
        found = _run(places, tmp_path / "without", task)["nocaps_val"]
    finally:
        monkeypatch.undo()
        caption_metrics.is_java_available.cache_clear()
    assert found.missing_metrics == {"nocaps_METEOR": "it needs Java, which is not installed"}
    assert found.metrics["nocaps_CIDEr"].value > 3
    assert "imitated" in found.protocol["caption_tokenizer"]
    if beside_java and caption_metrics.is_java_available():
        assert found.metrics["nocaps_CIDEr"].value == pytest.approx(with_java.metrics["nocaps_CIDEr"].value)
        assert found.fingerprint != with_java.fingerprint


@pytest.mark.parametrize("java", ["as installed", "none"])
def test_metrics_can_be_left_out(java, places, tmp_path, monkeypatch):
    if java == "none":
        monkeypatch.setattr(evaluate_task, "is_java_available", lambda: False)
    _answering(monkeypatch, _knows_all)
    (task,) = _all(places, "nocaps_val")
    found = _run(places, tmp_path, dataclasses.replace(task, exclude_metrics=("nocaps_METEOR", "nocaps_Bleu_1")))[
        "nocaps_val"
    ]
    excluded = {name: reason for name, reason in found.missing_metrics.items() if "Java" not in reason}
    assert excluded == dict.fromkeys(("nocaps_METEOR", "nocaps_Bleu_1"), "excluded by the config")
    assert "nocaps_Bleu_4" in found.metrics
    with pytest.raises(UserError, match="unknown metric of 'nocaps_val' 'nocaps_METEO'; did you mean 'nocaps_METEOR'"):
        _run(places, tmp_path, dataclasses.replace(task, exclude_metrics=("nocaps_METEO",)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a-file", "a-file: no such directory"),
        ("broken", "broken/lmms-lab-encoder/POPE/data/test-00000-of-00001.parquet: cannot be read as the data of pope"),
        ("wrong", "wrong/lmms-lab-encoder/POPE: cannot be read as the data of pope"),
    ],
)
def test_bad_data_gives_one_line(places, tmp_path, monkeypatch, data, said, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    for name in ("broken", "wrong"):
        Path(name, world.HUB, "POPE/data").mkdir(parents=True)
    Path("broken", world.HUB, "POPE/data/test-00000-of-00001.parquet").write_bytes(b"PAR1 cut short")
    world.write_parquet(Path("wrong", world.HUB, "POPE/data/test-00000-of-00001.parquet"), {"something": ["else"]})
    with pytest.raises(UserError) as caught:
        _run(places, tmp_path / "results", configure(name="pope", data=data))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_result(result_path(tmp_path / "results", "row", "pope")).status == "failed"
    assert "Traceback" not in capsys.readouterr().err
    assert not logging.getLogger("datasets").isEnabledFor(logging.ERROR)  # it would say the same in its own words


SEED_PICTURES = 4
CHOICES = ("red", "a green square number 1.", "blue on grey", "yes")


def _write_seed(root: Path) -> Path:
    rows = range(SEED_PICTURES)
    columns: dict[str, Any] = {
        "image": [[world.draw_image(number)] for number in rows],
        "question": ["What is it?"] * SEED_PICTURES,
        **{f"choice_{letter}": [text] * SEED_PICTURES for letter, text in zip("abcd", CHOICES, strict=True)},
        "answer": ["A", "B", "C", "D"],
        "data_type": ["image"] * SEED_PICTURES,
        "question_id": [str(number) for number in rows],
    }
    world.write_parquet(root / world.HUB / "SEED-Bench/data/test-00000-of-00001.parquet", columns)
    return root


def test_the_most_probable_choice_is_the_answer(places, tmp_path):
    llava = places / "llava"
    task = configure(name="seedbench_ppl", data=str(_write_seed(tmp_path / "hub")))
    result = world.measure(tmp_path / "results", task, llava=llava, batch_size=3)
    model, processor = load_llava(llava, "cpu")
    right = []
    for number in range(SEED_PICTURES):
        asked = ["What is it? Answer :"] * len(CHOICES)
        found = loglikelihoods(model, processor, [world.draw_image(number)] * len(CHOICES), asked, CHOICES)
        means = [each.total / each.tokens for each in found]
        right.append(float(means.index(max(means)) == number))
    assert 0 < sum(right) < SEED_PICTURES  # it prefers one and the same, by which the sign would show
    assert read_items(result)["score"].tolist() == right
    assert read_items(result)["thumbnail"].notna().all()  # of each question, though it has a request for each choice
    assert result.metrics["acc"].value == pytest.approx(sum(right) / SEED_PICTURES)


def test_unsupported_tasks(places):
    from benchmarks.tasks.mllm.offline_tasks import go_offline

    go_offline()
    from lmms_eval.api.instance import Instance

    from benchmarks.tasks.mllm.llava_model import LlavaBridgeModel

    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    alone = Instance(request_type="loglikelihood", arguments=("", "red"), idx=0, task_name="t", metadata=metadata)
    with pytest.raises(UserError, match=r"^t: likelihoods without a question"):
        LlavaBridgeModel(loaded=load_llava(places / "llava", "cpu")).loglikelihood([alone])


def test_a_benchmarks_cache_is_removed_before_the_next_benchmark(places, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = []

    def load_task(*args: Any, **kwargs: Any) -> Any:
        task = offline_tasks.load_task(*args, **kwargs)
        found.append(len([*tmp_path.glob("clips-bench-*")]))
        return task

    monkeypatch.setattr(evaluate_task, "load_task", load_task)
    _run(places, tmp_path / "results", *_all(places, "pope", "gqa"))
    assert found == [1, 1]


def test_a_signal_right_after_the_cache_is_made_leaves_nothing(places, tmp_path, monkeypatch):
    make = os.mkdir

    def interrupted(path: Any, *args: Any, **kwargs: Any) -> None:
        make(path, *args, **kwargs)
        if Path(path).name.startswith("clips-bench-"):
            raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        offline_tasks.load_task("pope", "pope", places / "hub", "")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_run_that_a_scheduler_stops_removes_its_cache(places, tmp_path):
    """`datasets` copies a benchmark into a temporary directory, which is as large as the benchmark."""
    config = tmp_path / "run.yaml"
    benchmark = f"{{name: pope, data: '{places / 'hub'}'}}"
    config.write_text(
        f"llava: '{places / 'llava'}'\nmodel_name: small\noutput: '{tmp_path}'\nbenchmarks: [{benchmark}]\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    words = [sys.executable, "-m", "benchmarks.cli", "run", "--config", str(config)]
    with subprocess.Popen(words, env={**os.environ, "TMPDIR": str(temporary)}, stderr=subprocess.PIPE) as process:
        while not any(temporary.glob("clips-bench-*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.communicate()[1].decode().splitlines()[-1] == "clips-bench: interrupted"
    assert process.returncode == EXIT_INTERRUPTED
    assert not [*temporary.glob("clips-bench-*")]
