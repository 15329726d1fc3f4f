"""scripts/compare_with_llava.py without LLaVA's own code, which is not here: what it refuses, tells it, concludes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import compare_with_llava

        yield compare_with_llava
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Options that name what is there; two steps of two samples."""
    files = {
        "llava": tmp_path / "LLaVA/llava/train/train.py",
        "site": tmp_path / "site/transformers/__init__.py",
        "llm": tmp_path / "llm/tokenizer.model",
    }
    for file in files.values():
        file.parent.mkdir(parents=True)
        file.touch()
    talk = [{"from": who, "value": f"{who} {turn}"} for turn in range(2) for who in ("human", "gpt")]
    rows = [{"image": f"{number}.png", "conversations": talk} for number in range(5)]
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    folders = [f"--llava={tmp_path / 'LLaVA'}", f"--site={tmp_path / 'site'}", f"--llm={tmp_path / 'llm'}"]
    return [*folders, f"--data={tmp_path / 'talk.json'}", "--steps=2", "--batch=2"]


@pytest.mark.parametrize(("away", "status"), [(0.0009, 0), (0.0011, 1), (float("nan"), 1)])
def test_the_status_says_whether_the_curves_agree(
    script: Any, given: list[str], away: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ours = {"align": [3.0, 2.0], "instruct": [1.5, 1.0]}
    theirs = {**ours, "instruct": [1.5, 1.0 - away]}
    monkeypatch.setattr(script, "train_both", lambda args, folder: (ours, theirs))
    assert script.main(given) == status
    printed = capsys.readouterr().out
    assert "   2   1.000000" in printed
    assert f"largest difference {away:.2g}" in printed


def test_their_training_is_told_what_ours_is(script: Any, tmp_path: Path) -> None:
    from llava_bridge.data import ConversationSourceConfig
    from llava_bridge.training.train_config import LlavaTrainConfig, StageConfig

    stage = StageConfig(
        data=[ConversationSourceConfig(path="a.json", image_folder="photos")],
        global_batch_size=4,
        micro_batch_size=2,
        learning_rate=3e-4,
    )
    config = LlavaTrainConfig(output="run", llava="start", align=stage, instruct=stage, seed=5)
    first, second = (script.their_options(config, name, tmp_path) for name in script.STAGES)
    for options in (first, second):
        assert (options["per_device_train_batch_size"], options["gradient_accumulation_steps"]) == (2, 2)
        assert (options["learning_rate"], options["warmup_ratio"], options["seed"]) == (3e-4, 0.03, 5)
    assert first["pretrain_mm_mlp_adapter"] == tmp_path / "projector" / "mm_projector.bin"
    assert second["pretrain_mm_mlp_adapter"] == first["output_dir"] / "mm_projector.bin"  # what its first stage learned
