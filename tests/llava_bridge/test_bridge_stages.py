"""What a stage can train: parts at rates of their own, adapters, packed rows; under DeepSpeed's ways to share work."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import Parts, assert_same_training, instruct_file, losses, metrics, moved, weights
from safetensors.torch import load_file

from llava_bridge import answer, load_llava
from llava_bridge.training.train_config import DistributedConfig, LoraConfig

pytestmark = pytest.mark.slow
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
EVERY = ["vision", "projector", "llm"]
STAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untrained": {"learning_rate": 1e-30},
    "packed": {"packing": True, "max_length": 120},
    "again": {"activation_checkpointing": True, "tunable_parts": EVERY},
    "whole": {"tunable_parts": EVERY},
    "llm_alone": {"tunable_parts": ["llm"]},
    "rates": {"tunable_parts": EVERY, "vision_tower_lr": 1e-30, "projector_lr": 1e-30},
    "lora": {"lora": LoraConfig(**LORA)},
    "beside": {"lora": LoraConfig(**LORA, merge_weights=False)},
    "kept": {"cache_vision_features": True},
    "found": {"cache_vision_features": True, "packing": True, "max_length": 120},
    "adapters": {"lora": LoraConfig(**LORA), "projector_lr": 1e-30},
}
OFFLOADS = ("zero2_offload", "zero3_offload")
TILED = ("plain", "untrained", "packed", "again", "whole", "llm_alone", "lora", "kept", "found")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, bridge_long_llm: Path) -> Parts:
    """With an album, and two samples of it, of which one has no image."""
    album = bridge_world.make_album(tmp_path_factory.mktemp("tiled") / "album")
    rows = json.loads((album / "talk.json").read_text())
    (album / "mixed.json").write_text(json.dumps([rows[0], rows[5]]))
    return Parts(bridge_encoder, bridge_long_llm, album)


def mixed(folder: Path, name: str, parts: Parts, **fields: Any) -> Path:
    """Three steps of two samples, so that a step has one with an image and one without."""
    settings = {"file": "mixed.json", "global_batch_size": 2, "tunable_parts": EVERY, "learning_rate": 1e-3}
    return instruct_file(folder, name, parts, settings, **fields)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bridge_parts: Parts, tiled: Parts) -> Path:
    """LLaVAs that one process trained, each with other settings: of squashed images, and of tiles."""
    directory = tmp_path_factory.mktemp("runs")
    paths = [instruct_file(directory, name, bridge_parts, settings) for name, settings in STAGES.items()]
    anyres: dict[str, Any] = {"image_aspect_ratio": "anyres"}
    for name in TILED:
        settings = STAGES[name] | ({"max_length": 300} if "packing" in STAGES[name] else {})
        paths.append(instruct_file(directory, f"tiled_{name}", tiled, settings, **anyres))
    stage = bridge_world.align_stage(tiled.talk)
    square = dataclasses.replace(stage, image_aspect_ratio="crop")
    for name, stages, align in (("aligned", ["align"], stage), ("both", ["align", "instruct"], square)):
        paths.append(instruct_file(directory, f"tiled_{name}", tiled, {}, stages=stages, align=align, **anyres))
    paths += [mixed(directory, f"mixed_{fit}", tiled, image_aspect_ratio=fit) for fit in ("anyres", "squash")]
    for way in OFFLOADS:
        paths.append(instruct_file(directory, way, bridge_parts, {}, distributed=DistributedConfig(deepspeed=way)))
    theirs = directory / "zero3_offload.json"
    zero = {**bridge_world.LLAVA_ZERO3_OFFLOAD["zero_optimization"], "offload_optimizer": {"device": "none"}}
    # Without the offload, for which DeepSpeed's Adam would be compiled for minutes.
    theirs.write_text(json.dumps({**bridge_world.LLAVA_ZERO3_OFFLOAD, "zero_optimization": zero}))
    rates = {"projector_lr": 1e-3}
    paths.append(instruct_file(directory, "own_rates", bridge_parts, rates))
    deepspeed = DistributedConfig(deepspeed=str(theirs))
    paths.append(instruct_file(directory, "of_llava", bridge_parts, rates, distributed=deepspeed))
    printed = bridge_world.trained_alone(*paths, XDG_CACHE_HOME=str(directory / "cache"))
    (directory / "printed.txt").write_text(printed)
    return directory


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, bridge_parts: Parts, tiled: Parts) -> Path:
    """LLaVAs that two processes trained, under ZeRO-2 and ZeRO-3."""
    directory = tmp_path_factory.mktemp("pairs")
    tied = bridge_parts._replace(llm=bridge_world.make_llm(directory / "llm", tied=True))
    paths = []
    for way in ("zero2", "zero3"):
        distributed = DistributedConfig(deepspeed=way)
        paths += [
            mixed(directory, f"{fit}_{way}", tiled, image_aspect_ratio=fit, distributed=distributed)
            for fit in ("anyres", "squash")
        ]
        for kind in ("whole", "lora", "tied"):
            settings = {"learning_rate": 1e-3} | ({"lora": LoraConfig(**LORA)} if kind == "lora" else {})
            parts = tied if kind == "tied" else bridge_parts
            paths.append(instruct_file(directory, f"{kind}_{way}", parts, settings, distributed=distributed))
    bridge_world.run_processes(2, "swap_driver.py", *map(str, paths), timeout=500)
    return directory


def test_only_the_named_parts_are_trained(runs: Path) -> None:
    learned = {"plain": {"projector", "llm"}, "whole": set(EVERY), "rates": {"llm"}, "lora": {"projector", "llm"}}
    learned |= {"adapters": {"llm"}, "beside": {"projector"}, "llm_alone": {"llm"}}  # these are next to the weights
    assert {name: moved(runs / "untrained", runs / name) for name in learned} == learned
    own = {"projector", "newline"}  # the end of rows learns with the projector
    learned = {"aligned": own, "llm_alone": {"llm"}, "whole": {"vision", "llm", *own}}
    learned |= {name: {"llm", *own} for name in ("plain", "both", "lora")}
    assert {name: moved(runs / "tiled_untrained", runs / f"tiled_{name}") for name in learned} == learned
    printed = (runs / "printed.txt").read_text()
    assert "instruct: vision trainable, " in printed
    assert "trainable adapter parameters, " in printed
    # two linear layers with biases, from 32 to 32, and the 32 of the token
    assert "align: projector trainable, 2,144 parameters" in printed
    assert "align: projector has 2,112 trainable parameters, 32 frozen" in printed  # of squares, which have no rows
    for name in ("plain", "again", "lora", "beside"):  # transformers' trainer turns it off in the config
        model, _ = load_llava(runs / name, device="cpu", adapter=False)
        assert model.config.text_config.use_cache, name
        assert model.generation_config.use_cache, name


@pytest.mark.parametrize("kind", ["", "tiled_"])
def test_packing_caching_and_checkpointing_train_the_same(kind: str, runs: Path) -> None:
    plain = losses(runs / f"{kind}plain")
    assert losses(runs / f"{kind}packed") == pytest.approx(plain, abs=1e-4)
    assert losses(runs / f"{kind}kept") == pytest.approx(plain, abs=1e-6 if kind else 0)
    assert losses(runs / f"{kind}found") == pytest.approx(plain, abs=1e-4)
    assert losses(runs / f"{kind}again") == pytest.approx(losses(runs / f"{kind}whole"), abs=1e-5)
    shards = (runs / "cache" / "clips" / "features").rglob("*.safetensors")
    kept = [key for path in shards for key in load_file(path)]
    # all images of one color have the same pixels; each tile of the album's images is one
    assert len(kept) == len(bridge_world.COLORS) + 3 + 3 + 5 + 4


def test_a_llava_with_tiles_answers(runs: Path) -> None:
    assert losses(runs / "tiled_both")[-1] < losses(runs / "tiled_both")[0]
    model, processor = load_llava(runs / "tiled_both", device="cpu")
    pictures: list[Any] = bridge_world.noise(*bridge_world.SHAPES)
    asked = [*pictures, None, pictures[:2]]
    prompts = ["What color is it?"] * len(asked)
    together = answer(model, processor, asked, prompts, max_new_tokens=5, batch_size=6)
    assert together == [answer(model, processor, [one], prompts[:1], max_new_tokens=5)[0] for one in asked]


@pytest.mark.parametrize("way", ["zero2", "zero3"])
@pytest.mark.parametrize("fit", ["anyres", "squash"])
def test_two_processes_of_which_one_has_no_image_learn_as_one(fit: str, way: str, runs: Path, pairs: Path) -> None:
    one, two = runs / f"mixed_{fit}", pairs / f"{fit}_{way}"
    assert metrics(two, "grad_norm") == pytest.approx(metrics(one, "grad_norm"), rel=1e-4)
    assert_same_training(two, one, 4e-5, 1e-4)


def test_adapters_are_merged_into_the_weights_and_only_where_they_are(runs: Path) -> None:
    before, after = weights(runs / "untrained"), weights(runs / "adapters")
    changed = {name for name, value in after.items() if (value - before[name]).abs().max() > 1e-6}
    assert changed
    assert all(".layers." in name and name.endswith("_proj.weight") for name in changed), changed
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= LORA["r"]
    assert losses(runs / "lora")[-1] < losses(runs / "lora")[0]


def test_unmerged_adapters_are_saved_next_to_the_model(runs: Path) -> None:
    import peft

    model, processor = load_llava(runs / "beside")
    plain = answer(model, processor, [None], ["What color is it?"], max_new_tokens=4)
    again, _ = load_llava(runs / "beside", adapter=False)
    adapted = peft.PeftModel.from_pretrained(again, runs / "beside" / "adapter").merge_and_unload()
    names = dict(adapted.named_parameters())
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, names[name], msg=name)
    assert answer(adapted, processor, [None], ["What color is it?"], max_new_tokens=4) == plain


@pytest.mark.parametrize("kind", ["whole", "lora", "tied"])
def test_zero_3_in_two_processes_saves_what_zero_2_does(kind: str, pairs: Path) -> None:
    within = 1e-4 if kind == "tied" else 1e-6  # Adam makes noise of gradients of words that hardly occur
    assert_same_training(pairs / f"{kind}_zero3", pairs / f"{kind}_zero2", within, 3e-6)  # float32 has steps of 5e-7


@pytest.mark.parametrize("way", OFFLOADS)
def test_offload_learns_the_same(way: str, runs: Path) -> None:
    assert losses(runs / way) == pytest.approx(losses(runs / "plain"), abs=1e-5)


def test_the_optimizer_and_schedule_of_a_deepspeed_file_are_ignored(runs: Path) -> None:
    """LLaVA's zero3_offload.json has both; its WarmupLR would replace the cosine, its AdamW the parts' own rates."""
    rates = metrics(runs / "own_rates", "lr")
    assert metrics(runs / "of_llava", "lr") == rates
    assert losses(runs / "of_llava") == pytest.approx(losses(runs / "own_rates"), abs=1e-5)
    assert "zero3_offload.json: optimizer and scheduler ignored, since the stage has settings for them" in (
        (runs / "printed.txt").read_text()
    )


ENDLESS = {"max_steps": 2000, "learning_rate": 1e-3}


def test_sigterm_saves_and_the_same_command_resumes(tmp_path: Path, bridge_parts: Parts) -> None:
    path = instruct_file(
        tmp_path, "run", bridge_parts, ENDLESS, distributed=DistributedConfig(num_processes=2), save_steps=0
    )
    work = tmp_path / ".run.work"
    with bridge_world.training(path) as process:
        bridge_world.wait_for(lambda: len(metrics(work, "step")) > 4, process)
        printed = bridge_world.ended_by(signal.SIGTERM, process)
        assert process.returncode == 75, printed
    assert "instruct: stopped after step" in printed
    assert "Traceback" not in printed
    (mark,) = work.glob("instruct/checkpoints/checkpoint-*/complete")
    step = int(mark.parent.name.rpartition("-")[2])
    refused = bridge_world.run_cli("train", "--config", str(path), "--instruct.learning_rate", "0.5")
    assert refused[0] == 2
    assert "holds another run: instruct.learning_rate is 0.001 there and 0.5 now" in refused[2]
    assert mark.is_file()
    with bridge_world.training(path) as process:
        bridge_world.wait_for(lambda: step + 3 in metrics(work, "step"), process)
        printed = bridge_world.ended_by(signal.SIGINT, process)
        assert process.returncode == 130, printed
    assert "resuming the unfinished run" in printed
    assert step + 1 in metrics(work, "step")


def test_sigterm_to_every_process_of_a_job_saves_readers_of_data_included(tmp_path: Path, bridge_parts: Parts) -> None:
    path = instruct_file(tmp_path, "job", bridge_parts, ENDLESS, save_steps=0, num_workers=1)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with bridge_world.training(path, *torchrun, "-m", "llava_bridge", "train") as process:
        bridge_world.wait_for(lambda: len(metrics(tmp_path / ".job.work", "step")) > 4, process)
        printed = bridge_world.ended_by(signal.SIGTERM, process)  # torchrun passes it on to both processes
    assert "instruct: stopped after step" in printed
    assert "DataLoader worker" not in printed
    assert list((tmp_path / ".job.work").glob("instruct/checkpoints/checkpoint-*/complete"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_saves_what_an_eager_one_does(tmp_path: Path, bridge_parts: Parts) -> None:
    lora = LoraConfig(**LORA, merge_weights=False)
    runs = [tmp_path / "eager", tmp_path / "compiled"]
    for run in runs:
        distributed = DistributedConfig(torch_compile=run.name == "compiled")
        path = instruct_file(tmp_path, run.name, bridge_parts, {"lora": lora}, distributed=distributed)
        graphs = tmp_path / f"{run.name}-graphs"
        bridge_world.trained_alone(path, TORCHINDUCTOR_CACHE_DIR=str(graphs))
        assert any(graphs.glob("*")) == distributed.torch_compile
    assert_same_training(*runs, 1e-5)
    eager, compiled = (load_file(run / "adapter" / "adapter_model.safetensors") for run in runs)
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-4, msg=name)
