"""lmms-eval's own `llava_hf` loads a LLaVA of ours whose tower transformers has, and answers as we do."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import original_world as world
import pytest

from llava_bridge import answer, load_llava
from llava_bridge.model.build import LlavaParts, build_llava, convert_tower_to_transformers

QUESTIONS = ["What is it?", "Is there a red thing in the picture? Answer yes or no."]


@pytest.mark.parametrize("image_aspect_ratio", ["pad", pytest.param("anyres", marks=pytest.mark.slow)])
def test_the_harness_own_model_answers_the_same(
    image_aspect_ratio: Any, tmp_path: Path, bridge_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = world.write_tower(world.Parts(), tmp_path / "clip")
    model, processor = build_llava(
        LlavaParts(encoder=f"transformers:{tower}", llm=str(bridge_llm), image_aspect_ratio=image_aspect_ratio)
    )
    assert convert_tower_to_transformers(model)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "llava")
    picture = world.picture()
    ours = answer(*load_llava(tmp_path / "llava", device="cpu"), [picture] * 2, QUESTIONS, max_new_tokens=8)
    assert all(ours)
    assert len(set(ours)) == 2  # an untrained LLM's, but of these questions
    assert llava_hf(tmp_path / "llava", picture, monkeypatch) == ours


def llava_hf(directory: Path, picture: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The answers to ``QUESTIONS`` about ``picture`` of lmms-eval's class."""
    video = types.ModuleType("decord")  # wanted for videos alone
    video.VideoReader = video.cpu = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "decord", video)
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.simple.llava_hf import LlavaHf

    model = LlavaHf(str(directory), device="cpu", device_map="cpu", dtype="float32")
    model.task_dict = {"colors": {"test": [{"question": question} for question in QUESTIONS]}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(question, {"max_new_tokens": 8}, lambda _: [picture], number, "colors", "test"),
            idx=0,
            metadata={"task": "colors", "doc_id": number, "repeats": 1},
        )
        for number, question in enumerate(QUESTIONS)
    ]
    return [text.strip() for text in model.generate_until(requests)]
