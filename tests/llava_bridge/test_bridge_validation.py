"""Validation during the last stage: against generation, in several processes, next to an unchanged training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import metrics
from torch import nn

from llava_bridge import answer_conversations, load_llava
from llava_bridge.data import HeldOutSourceConfig
from llava_bridge.training.loss import count_matching_answers
from llava_bridge.training.train_config import DistributedConfig, LoraConfig, ValidationConfig

HELD_OUT = 7  # samples, of which two processes have 4 and 3
BATCH = 2


def test_answers_match_if_each_of_their_tokens_is_the_most_probable() -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 5, bias=True)
    hidden = torch.randn(12, 8)
    labels = head(hidden).argmax(dim=-1)
    positions = torch.tensor([1, 2, 3, 7, 10, 11, 12, 13, 20, 22, 23, 24])  # answers of 3, 1, 4, 1 and 3 tokens
    assert count_matching_answers(hidden, head, labels, positions).tolist() == [5, 5]
    for wrong, left in (([2], 4), ([3], 4), ([4, 5, 7], 4), ([0, 11], 3), ([1, 3, 4, 8, 9], 0)):
        changed = labels.clone()
        changed[wrong] = (changed[wrong] + 1) % 5
        assert count_matching_answers(hidden, head, changed, positions).tolist() == [left, 5]
    assert count_matching_answers(hidden[:0], head, labels[:0], positions[:0]).tolist() == [0, 0]


def held_out(directory: Path, talk: Path) -> Path:
    """The first conversations of ``talk``, and one without its image."""
    rows = json.loads((talk / "talk.json").read_text())[:HELD_OUT]
    rows[2]["image"] = "missing.png"
    path = directory / "held_out.json"
    path.write_text(json.dumps(rows))
    return path


def questions(directory: Path, talk: Path) -> Path:
    """The conversations of ``talk``: of each color one as it was trained, one whose first answer has the other case;
    one lacks its image."""
    rows = json.loads((talk / "talk.json").read_text())
    for number, row in enumerate(rows):
        answer = row["conversations"][1]
        answer["value"] = (answer["value"], answer["value"].capitalize())[number // len(bridge_world.COLORS) % 2]
    rows[4]["image"] = "missing.png"
    path = directory / "questions.json"
    path.write_text(json.dumps(rows))
    return path


def validated(
    directory: Path, name: str, parts: Any, *, eval_steps: int | None = 20, lora_dropout: float = 0.1, **fields: Any
) -> Path:
    """The config of a run that learns the colors, with a validation in each ``eval_steps``.

    With dropout the training depends on the random numbers, which differ with the number of processes.
    """
    adapters = LoraConfig(r=8, lora_alpha=16, lora_dropout=lora_dropout)
    settings: dict[str, Any] = {"lora": adapters, "max_steps": 50, "micro_batch_size": BATCH, "learning_rate": 3e-2}
    if eval_steps is not None:
        path = directory / "held_out.json"
        config = HeldOutSourceConfig(path=str(path), image_root=str(parts.talk))
        benchmark = HeldOutSourceConfig(path=str(directory / "questions.json"), image_root=str(parts.talk))
        fields["validation"] = ValidationConfig(source=config, benchmarks={"colors": benchmark}, eval_steps=eval_steps)
    return bridge_world.instruct_file(directory, name, parts, settings, num_workers=0, **fields)


def validations(directory: Path) -> dict[int, tuple[float, float, float]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    names = ("val_loss", "val_exact_match", "val_colors_exact_match")
    return {row["step"]: tuple(row[name] for name in names) for row in rows if "val_loss" in row}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bridge_parts: Any) -> Path:
    """The same training with and without validation, and what it printed."""
    directory = tmp_path_factory.mktemp("validated")
    held_out(directory, bridge_parts.talk)
    questions(directory, bridge_parts.talk)
    files = [validated(directory, "with", bridge_parts), validated(directory, "without", bridge_parts, eval_steps=None)]
    (directory / "printed.txt").write_text(bridge_world.trained_alone(*files))
    return directory


@pytest.mark.slow
def test_the_training_is_the_same_with_and_without_validation(runs: Path) -> None:
    bridge_world.assert_same_training(runs / "with", runs / "without", 0)
    assert list(validations(runs / "with")) == [20, 40, 50]
    assert not validations(runs / "without")
    printed = (runs / "printed.txt").read_text()
    assert printed.count("instruct: validation without 1 invalid samples") == 1
    assert printed.count("instruct: validation of colors without 2 invalid samples") == 1
    assert "val_exact_match 0." in printed or "val_exact_match 1." in printed


def test_exact_match_is_that_of_greedy_generation(runs: Path, bridge_parts: Any) -> None:
    model, processor = load_llava(runs / "with")
    rows = json.loads((runs / "held_out.json").read_text())
    pairs: list[bool] = []
    for row in [row for row in rows if row["image"] != "missing.png"]:
        turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
        messages = [{"role": {"human": "user", "gpt": "assistant"}[who], "content": text} for who, text in turns]
        for end in (1, 3):
            with bridge_world.Image.open(bridge_parts.talk / row["image"]) as opened:
                image = opened.copy()
            said = answer_conversations(model, processor, [image], [messages[:end]], max_new_tokens=16)[0]
            pairs.append(said.strip() == turns[end][1])
    assert sum(pairs) > 0
    assert validations(runs / "with")[50][1] == pytest.approx(sum(pairs) / len(pairs))


def test_the_exact_match_of_a_benchmark_is_that_of_generated_answers_in_either_case(
    runs: Path, bridge_parts: Any
) -> None:
    model, processor = load_llava(runs / "with")
    pairs: list[tuple[str, str]] = []
    for row in json.loads((runs / "questions.json").read_text()):
        if row["image"] != "missing.png":
            first, answer, second, other = (turn["value"] for turn in row["conversations"])
            with bridge_world.Image.open(bridge_parts.talk / row["image"]) as opened:
                image = opened.copy()
            for question, expected in ((first, answer), (f"<image>\n{second}", other)):  # each asked alone
                messages = [{"role": "user", "content": question}]
                said = answer_conversations(model, processor, [image], [messages], max_new_tokens=16)[0]
                pairs.append((said.strip(), expected))
    right = [said.lower() == answer.lower() for said, answer in pairs]
    assert sum(right) > sum(said == answer for said, answer in pairs) > 0
    assert not all(right)
    assert validations(runs / "with")[50][2] == pytest.approx(sum(right) / len(right))


@pytest.fixture(scope="module")
def alone(runs: Path, bridge_parts: Any) -> Path:
    """The training without dropout, in one process."""
    bridge_world.trained_alone(validated(runs, "alone", bridge_parts, lora_dropout=0.0))
    return runs / "alone"


@pytest.mark.slow
@pytest.mark.parametrize("distributed", [{}, {"deepspeed": "zero3"}], ids=str)
def test_two_processes_measure_what_one_does(
    runs: Path, alone: Path, bridge_parts: Any, distributed: dict[str, str]
) -> None:
    name = "-".join(["two", *distributed.values()])
    processes = DistributedConfig(num_processes=2, **distributed)
    bridge_world.train(validated(runs, name, bridge_parts, lora_dropout=0.0, distributed=processes))
    assert metrics(runs / name, "loss")[0] == pytest.approx(metrics(alone, "loss")[0], abs=1e-5)
    for step, expected in validations(alone).items():
        assert validations(runs / name)[step] == pytest.approx(expected, abs=2e-3), step


def test_only_the_last_stage_is_validated_and_invalid_questions_are_left_out(tmp_path: Path, bridge_parts: Any) -> None:
    """Of the last benchmark no question can be used."""
    rows = json.loads((bridge_parts.talk / "talk.json").read_text())
    sources = []
    for name, image in (("colors", None), ("missing", "missing.png")):
        (tmp_path / f"{name}.json").write_text(json.dumps([{**row, "image": image or row["image"]} for row in rows]))
        file = str(tmp_path / f"{name}.json")
        sources.append(HeldOutSourceConfig(path=file, image_root=str(bridge_parts.talk)))
    usable, missing = sources
    validation = ValidationConfig(source=usable, benchmarks={"colors": usable, "missing": missing}, eval_steps=1)
    stages = {name: bridge_world.stage(bridge_parts.talk, max_steps=1) for name in ("align", "instruct")}
    parts = {"encoder": str(bridge_parts.encoder), "llm": str(bridge_parts.llm)}
    file = bridge_world.config_file(
        tmp_path, "llava", bridge_parts.talk, stages=[*stages], **stages, **parts, validation=validation, num_workers=0
    )
    printed = bridge_world.trained_alone(file)
    assert f"validation of missing without {2 * len(rows)} invalid samples" in printed
    first, row = map(json.loads, (tmp_path / "llava" / "metrics.jsonl").read_text().splitlines())
    assert not any(name.startswith("val") for name in first)
    assert {name for name in row if name.startswith("val")} == {
        "val_loss",
        "val_exact_match",
        "val_colors_exact_match",
    }
