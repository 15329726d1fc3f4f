"""The benchmarks of scripts/bench compare what they say they compare; what they measure is never tested."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts" / "bench"


@pytest.fixture(scope="module")
def scripts():
    """The benchmarks as modules, under the names by which they import each other."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import bridge_step
        import loss_memory
        import measure
        import step_vs_open_clip
        import vs_openvision

        yield argparse.Namespace(
            measure=measure,
            losses=loss_memory,
            open_clip=step_vs_open_clip,
            openvision=vs_openvision,
            bridge=bridge_step,
        )
    finally:
        sys.path.remove(str(SCRIPTS))


def test_sides_take_turns_and_the_ratio_is_of_pairs(scripts):
    order: list[str] = []
    sides = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = scripts.measure.take_turns(sides, rounds=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # the first pair warms up
    assert [len(values) for values in seconds.values()] == [3, 3]
    ratio = scripts.measure.speed_up({"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 3.0, 4.0]}, "ours", "theirs")
    assert f"{ratio:.2f}" == "1.50 (1.25–2.25)"


def options(**changes):
    defaults = {"architecture": "clips-tiny", "image_size": 16, "batch": 8, "captions": None, "field": "web"}
    return argparse.Namespace(**{**defaults, "device": "cpu", **changes})


@pytest.mark.parametrize("attention", ["all", "causal"])
def test_both_sides_of_the_clip_step_have_one_model_and_one_loss(scripts, attention):
    sides, counts = scripts.open_clip.make_sides(options(), "clip", attention, "fp32")
    assert counts["ours"] == counts["theirs"]
    first = {name: step() for name, step in sides.items()}
    assert first["ours"]["loss"] == pytest.approx(first["theirs"]["loss"], rel=1e-5)
    assert abs(sides["theirs"]()["loss"] - first["theirs"]["loss"]) > 0.01  # the weights have moved


def test_both_sides_of_the_coca_step_predict_the_same_tokens(scripts):
    sides, _ = scripts.open_clip.make_sides(options(), "coca", "causal", "fp32")
    for step in sides.values():
        assert {"contrastive_loss", "caption_loss"} <= step().keys()
    _, batch = scripts.measure.start(
        scripts.open_clip.ModelConfig(architecture="clips-tiny", image_size=16),
        scripts.open_clip.RecipeConfig(
            name="coca", web_caption_prob=1.0, captioner=scripts.open_clip.CaptionerConfig(max_length=32)
        ),
        "fp32",
        [["a red car", "two brown dogs"], ["", ""]],
        "cpu",
    )
    labels = scripts.open_clip.coca_rows(batch)[:, 1:]
    counted = batch["target_mask"]
    assert int(counted.sum()) == int((labels != 0).sum()) == 4 + 4
    assert labels[labels != 0].tolist() == scripts.openvision.shift_labels(batch["target"])[counted].tolist()


def test_memory_is_what_is_held_at_once(scripts):
    def run():
        first = torch.empty(1000, dtype=torch.float32)
        del first
        both = torch.empty(500, dtype=torch.float32), torch.empty(2000, dtype=torch.float32)
        return len(both)

    assert scripts.losses.peak_bytes(run, "cpu") == 10_000


def test_contrastive_losses_of_one_process_have_equal_gradients(scripts):
    leaves = tuple(scripts.losses.unit(6, "cpu").requires_grad_() for _ in range(2))
    sides = scripts.losses.contrastive_losses([scripts.losses.unit(14, "cpu") for _ in range(2)])
    found = {name: torch.autograd.grad(loss(*leaves, torch.tensor(14.0)), leaves) for name, loss in sides.items()}
    torch.testing.assert_close(found["ours"], found["naive"], atol=1e-6, rtol=1e-4)
    assert found["naive"][0].abs().max() > 0.01


def test_the_bridges_loss_is_compared_with_transformers_own_for_the_same_batch(scripts):
    args = argparse.Namespace(device="cpu", vocabulary=2000)
    sides = scripts.bridge.memory_sides(args)[0]
    losses = [loss().item() for loss in sides.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    table = scripts.bridge.memory_table(args)
    assert table.count("| transformers |") == table.count("| bridge |") == 1


def test_the_bridges_mix_has_its_kinds(scripts, shared, tmp_path):
    rows = json.loads(scripts.bridge.write_mix(shared, tmp_path / "mix.json", 60).read_text())
    pictures = [row["image"] for row in rows if "image" in row]
    assert (len(rows), len(pictures)) == (60, 50)
    assert all((shared / picture).is_file() for picture in pictures)
    assert all(row["conversations"][0]["value"].startswith("<image>") == ("image" in row) for row in rows)
    assert len({turn["from"] for row in rows for turn in row["conversations"]}) == 2
