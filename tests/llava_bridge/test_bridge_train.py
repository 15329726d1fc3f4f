"""Training by the command: stages, frozen parts, two processes, kill and resume, errors."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import metrics
from huggingface_hub import ModelCard
from power_cut import failing_disk
from safetensors import SafetensorError
from safetensors.torch import load_file

from clips.errors import UserError
from clips.loader.invalid_samples import InvalidSamples
from llava_bridge import answer, load_llava
from llava_bridge.training import train as training
from llava_bridge.training.inputs import resolve_inputs
from llava_bridge.training.launch import report_once
from llava_bridge.training.train_config import DistributedConfig, LlavaTrainConfig, StageConfig

LOGGED = ("stage", "step", "loss")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, bridge_talk: Path) -> Path:
    """A LLaVA trained by both stages with one command, in one process; and what the command printed."""
    directory = tmp_path_factory.mktemp("runs")
    config = bridge_world.config_file(directory, "one", bridge_talk, encoder=str(bridge_encoder))
    (directory / "printed.txt").write_text(bridge_world.train(config))
    return directory / "one"


def test_both_stages_in_one_command(trained: Path, bridge_encoder: Path) -> None:
    logged = metrics(trained, *LOGGED)
    assert [stage for stage, _, _ in logged] == ["align"] * 4 + ["instruct"] * 6
    instruct = [loss for stage, _, loss in logged if stage == "instruct"]
    assert instruct[-1] < instruct[0]
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["kind"] == "llava"
    assert manifest["parents"]["encoder"]["path"] == str(bridge_encoder)
    assert [(name, stage["steps"]) for name, stage in manifest["stages"].items()] == [*(("align", 4), ("instruct", 6))]
    assert len(manifest["data"]["align"][0]["hash"]) == 64
    card = ModelCard.load(trained / "README.md")
    assert card.data.library_name == "transformers"
    assert f"| encoder | `{bridge_encoder}` |" in card.text
    assert "| instruct | 6 steps, " in card.text
    printed = (trained.parent / "printed.txt").read_text()
    assert "align: vision frozen" in printed
    assert "align: projector trainable" in printed
    told = r"((align|instruct): .*\n)+wrote (\S+); next: `llava-bridge chat \3 --image FILE`\n"
    printed = printed.removeprefix("llava-bridge train: loading ...\n")  # on a slow machine
    assert re.fullmatch(told, printed)  # nothing of the libraries
    assert not list(trained.parent.glob(".*"))
    usual = (trained.parent / "printed.txt").stat().st_mode
    assert {path.stat().st_mode for path in trained.iterdir()} == {usual}
    encoder = load_file(bridge_encoder / "open_clip_model.safetensors")
    weights = bridge_world.weights(trained).items()
    tower = {name.rpartition("visual.")[2]: value for name, value in weights if "visual." in name}
    assert tower
    assert all(torch.equal(value, encoder[f"visual.{name}"]) for name, value in tower.items())
    model, processor = load_llava(trained)
    assert answer(model, processor, [None], ["What?"], max_new_tokens=2) is not None


@pytest.mark.slow
def test_two_processes_compute_what_one_does(trained: Path, bridge_encoder: Path, bridge_talk: Path) -> None:
    directory, distributed = trained.parent, DistributedConfig(num_processes=2)
    bridge_world.train(
        bridge_world.config_file(directory, "two", bridge_talk, encoder=str(bridge_encoder), distributed=distributed)
    )
    for one, two in zip(metrics(trained, *LOGGED), metrics(directory / "two", *LOGGED), strict=True):
        assert one[:2] == two[:2]
        assert one[2] == pytest.approx(two[2], abs=2e-5), one[:2]


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights(trained: Path, bridge_encoder: Path, bridge_talk: Path) -> None:
    directory = trained.parent
    config = bridge_world.config_file(directory, "killed", bridge_talk, encoder=str(bridge_encoder), save_steps=2)
    command = ("-m", "llava_bridge", "train", "--local_rank=0")
    checkpoint = directory / ".killed.work" / "instruct" / "checkpoints" / "checkpoint-4" / "complete"
    with bridge_world.training(config, *command, **bridge_world.launched()) as process:
        bridge_world.wait_for(checkpoint.exists, process)
        process.kill()
    assert not (directory / "killed").exists()
    for mark in checkpoint.parents[1].glob("*/complete"):
        known = json.loads(mark.read_text())
        assert 0 < known["seconds"] < 1000
        mark.write_text(json.dumps(known | {"seconds": known["seconds"] + 10_000}))
    resumed = bridge_world.train(config, "--local_rank=0", **bridge_world.launched())
    assert "resuming the unfinished run" in resumed
    assert "align: done before" in resumed
    assert metrics(directory / "killed", *LOGGED) == metrics(trained, *LOGGED)
    manifest = json.loads((directory / "killed" / "manifest.json").read_text())
    assert 10_000 < manifest["stages"]["instruct"]["seconds"] < 11_000  # the killed attempt's are in it
    assert 10_000 < manifest["seconds"] < 12_000
    assert not list(directory.glob(".killed.*"))
    bridge_world.assert_same_training(directory / "killed", trained, 0)


@pytest.mark.slow
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(trained: Path, bridge_encoder: Path, bridge_talk: Path):
    directory = trained.parent
    config = bridge_world.config_file(directory, "damaged", bridge_talk, encoder=str(bridge_encoder), save_steps=2)
    checkpoint = directory / ".damaged.work" / "instruct" / "checkpoints" / "checkpoint-4"
    command = ("-m", "llava_bridge", "train", "--local_rank=0")
    with bridge_world.training(config, *command, **bridge_world.launched()) as process:
        bridge_world.wait_for((checkpoint / "complete").exists, process)
        process.kill()
    for newer in checkpoint.parent.glob("checkpoint-6"):
        shutil.rmtree(newer)
    (states,) = checkpoint.rglob("*optim_states.pt")
    content = bytearray(states.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4] = b"\xaa\xbb\xcc\xdd"
    states.write_bytes(content)
    resumed = bridge_world.train(config, "--local_rank=0", **bridge_world.launched())
    assert f"{states}: missing or damaged" in resumed
    assert f"resuming from {checkpoint.with_name('checkpoint-2')}, the checkpoint before it" in resumed
    assert metrics(directory / "damaged", *LOGGED) == metrics(trained, *LOGGED)
    bridge_world.assert_same_training(directory / "damaged", trained, 0)


def test_the_command_imports_neither_torch_nor_transformers(tmp_path, bridge_encoder, bridge_talk):
    config = bridge_world.config_file(tmp_path, "light", bridge_talk, encoder=str(bridge_encoder))
    code = f"""
import sys
from llava_bridge import cli
from llava_bridge.training import train
train.start_ranks = lambda *_: sys.exit(f"started with {{sorted({{'torch', 'transformers'}} & set(sys.modules))}}")
sys.argv = ["llava-bridge", "train", "--config", {str(config)!r}]
cli.main()
"""
    assert "started with []" in bridge_world.run_python("-c", code).stderr


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["--encoder", "none"], "encoder: none is not a directory"),
        (["--llm", "none"], "llm: none is not a directory (expected one, or ORG/NAME on the Hub)"),
        (
            ["--align.global_batch_size", "5", "--distributed.num_processes", "2"],
            "align.global_batch_size: expected a mult",
        ),
        (["--stages", "[instruct,align]"], "stages: expected each once and in the order"),
        (["--align.data", "[{path: none.json}]"], "align.data: none.json: no such file or directory"),
        (["--align.data", "[{path: .}]"], ".: is a directory; expected a file"),
        (
            ["--distributed.deepspeed", "zero9"],
            "distributed.deepspeed: expected a JSON file or one of zero2, zero2_offload, zero3, zero3_offload, got",
        ),
        (
            ["--distributed.deepspeed", "zero3", "--distributed.torch_compile", "true"],
            "distributed.deepspeed: expected zero2 with distributed.torch_compile",
        ),
        (
            ["--stages", "[align]", "--align.chat_template", "plain"],
            "align.chat_template: expected null without the stage instruct",
        ),
        (
            ["--stages", "[align]", "--align.image_aspect_ratio", "crop"],
            "align.image_aspect_ratio: expected null without the stage instruct",
        ),
        (["--image_grid_pinpoints", "[[32,64]]"], "image_grid_pinpoints: expected none without image_aspect_ratio"),
        (
            ["--llava", "x", "--encoder", "null", "--llm", "null", "--image_aspect_ratio", "anyres"],
            "image_aspect_ratio: expected none with llava",
        ),
        (["--llava", "x"], "encoder: expected none with llava"),
        (["--encoder", "null"], "encoder: expected an encoder directory"),
        (["--instruct.tunable_parts", "[llm,llm]"], "instruct.tunable_parts: expected some of "),
        (["--instruct.vision_tower_lr", "0.1"], "instruct.vision_tower_lr: expected none, as vision is frozen"),
        (
            ["--instruct.tunable_parts", "[vision]", "--instruct.cache_vision_features", "true"],
            "instruct.cache_vision_features: expected false in a stage without a frozen encoder",
        ),
        (["--validation.source.path", "none.json"], "validation.source: none.json: no such file"),
        (["--validation.benchmarks", "{x: {path: none.json}}"], "validation.benchmarks.x: none.json: no such file"),
        (["--validation.benchmarks", "{A b: {path: none.json}}"], "validation.benchmarks: expected names of a-z"),
    ],
)
def test_bad_input_is_one_line_and_status_2(overrides, line, tmp_path, bridge_parts, monkeypatch):
    path = bridge_world.instruct_file(tmp_path, "bad", bridge_parts, {}, stages=["align", "instruct"])
    monkeypatch.setattr(training, "start_ranks", lambda *_: pytest.fail("it was started"))
    status, _, printed = bridge_world.run_cli("train", "--config", str(path), *overrides)
    assert (status, printed.count("\n")) == (2, 1)
    assert line in printed
    assert not (tmp_path / "bad").exists()


ZERO2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([], "expected a JSON object, got list"),
        ({}, "zero_optimization: expected an object, got null"),
        ({**ZERO2, "bf16": True}, "bf16: expected an object, got true"),
        (
            {**ZERO2, "train_micro_batch_size_per_gpu": 8},
            'train_micro_batch_size_per_gpu: expected "auto" or 4, as in align, got 8',
        ),
        ({**ZERO2, "train_batch_size": 8}, 'train_batch_size: expected "auto" or 4, as in align, got 8'),
        (
            {**ZERO2, "gradient_accumulation_steps": 2},
            'gradient_accumulation_steps: expected "auto" or 1, as in align, got 2',
        ),
        ({**ZERO2, "gradient_clipping": 0.5}, 'gradient_clipping: expected "auto" or 1.0, as in align, got 0.5'),
        ({**ZERO2, "bf16": {"enabled": True}}, 'bf16.enabled: expected "auto" with precision fp32, got true'),
        (
            {"zero_optimization": {"stage": 2, "overlap_com": True}},
            "unknown zero_optimization 'overlap_com'; did you mean 'overlap_comm'?",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"devise": "cpu"}}},
            'zero_optimization.offload_optimizer.devise: got "cpu": Extra inputs are not permitted',
        ),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: got 4: Input should be "),
        (
            {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": "many"}},
            'zero_optimization.stage3_max_live_parameters: got "many": Input should be a valid integer',
        ),
        ({**ZERO2, "fp16": {"enabled": True}}, 'fp16.enabled: expected "auto" with precision fp32, got true'),
    ],
)
def test_a_deepspeed_file_that_contradicts_the_run_is_one_line(content, line, tmp_path, bridge_parts):
    path = bridge_world.instruct_file(
        tmp_path, "bad", bridge_parts, {}, stages=["align", "instruct"], align=bridge_world.stage(bridge_parts.talk)
    )
    (tmp_path / "own.json").write_text(json.dumps(content))
    words = ("--distributed.deepspeed", str(tmp_path / "own.json"))
    status, _, printed = bridge_world.run_cli("train", "--config", str(path), *words)
    assert (status, printed.count("\n")) == (2, 1)
    assert f"distributed.deepspeed: {tmp_path / 'own.json'}: {line}" in printed
    assert not (tmp_path / "bad").exists()


def with_deepspeed(file: Path, parts: Any) -> LlavaTrainConfig:
    stage, distributed = bridge_world.stage(parts.talk), DistributedConfig(deepspeed=str(file))
    own: dict[str, Any] = {"stages": ["instruct"], "instruct": stage, "distributed": distributed}
    return LlavaTrainConfig(output=f"{file}.run", encoder=str(parts.encoder), llm=str(parts.llm), **own)


def test_sizes_of_a_deepspeed_file_are_those_of_the_launched_processes(tmp_path: Path, bridge_parts: Any, monkeypatch):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**ZERO2, "train_micro_batch_size_per_gpu": 2}))
    config = with_deepspeed(own, bridge_parts)
    assert config.instruct.global_batch_size == 4
    with pytest.raises(UserError, match='expected "auto" or 4'):
        resolve_inputs(config)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    resolve_inputs(config)


def test_the_content_of_a_deepspeed_file_belongs_to_the_identity(tmp_path: Path, bridge_parts: Any) -> None:
    own = tmp_path / "own.json"
    config = with_deepspeed(own, bridge_parts)
    own.write_text(json.dumps(ZERO2))
    before = resolve_inputs(config).identity
    own.write_text(json.dumps(ZERO2, indent=2))
    assert resolve_inputs(config).identity.difference(before.values) is None
    own.write_text(json.dumps({**ZERO2, "zero_optimization": {"stage": 3}}))
    assert str(resolve_inputs(config).identity.difference(before.values)).startswith("inputs.instruct.deepspeed is ")


@pytest.mark.parametrize(
    "raised",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 534"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_reported_in_one_line(raised: Exception) -> None:
    with pytest.raises(UserError, match=r"^output: the disk is full"), report_once():
        raise raised


def test_frozen_parts_differ_from_trained_ones_bit_by_bit() -> None:
    from llava_bridge.training.setup import StageSetup, set_trainable_parts
    from llava_bridge.training.trainer import frozen_tensors, tensors_hash

    model: Any = torch.nn.ModuleDict({name: torch.nn.BatchNorm1d(2) for name in ("vision", "projector", "llm")})
    setup: Any = StageSetup(model, None, dict(model.items()), None, None)  # type: ignore[arg-type]

    def learning(stage: StageConfig, name: str) -> set[str]:
        set_trainable_parts(setup, stage, name)
        return {part for part, module in model.items() if module.weight.requires_grad}

    assert learning(StageConfig(), "align") == {"projector"}
    assert learning(StageConfig(), "instruct") == {"projector", "llm"}
    assert learning(StageConfig(tunable_parts=["vision", "llm"]), "instruct") == {"vision", "llm"}
    assert not frozen_tensors(model["vision"])  # its statistics move with it
    projector = model["projector"]
    before = tensors_hash(frozen_tensors(projector))
    assert before == tensors_hash(frozen_tensors(projector))
    projector.running_mean[0] = torch.nextafter(torch.tensor(0.0), torch.tensor(1.0))
    assert tensors_hash(frozen_tensors(projector)) != before


def stage_trainer(max_invalid_ratio: float = 0.5) -> Any:
    """A StageTrainer of three samples without a model, for its own checks."""
    from clips.loader.invalid_samples import InvalidSamples
    from llava_bridge.training.trainer import StageTrainer

    trainer = StageTrainer.__new__(StageTrainer)
    trainer.stage_name, trainer.invalid, trainer.max_invalid_ratio = "align", InvalidSamples(), max_invalid_ratio
    trainer.train_dataset, trainer.state, trainer.losses = range(3), SimpleNamespace(global_step=6), []
    return trainer


def test_a_stage_has_the_steps_of_its_epochs() -> None:
    stage = StageConfig(num_epochs=1.5, global_batch_size=4)
    assert [stage.num_steps(samples) for samples in (8, 9, 1)] == [3, 4, 1]
    assert dataclasses.replace(stage, max_steps=7).num_steps(9) == 7


def test_parts_learn_at_rates_of_their_own_and_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    trainer, model = stage_trainer(), torch.nn.ModuleDict()
    for part in ("vision", "projector", "llm"):
        model[part] = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    model["vision"].requires_grad_(False)
    trainer.optimizer, trainer.model, trainer.parts = None, model, dict(model.items())
    trainer.stage = StageConfig(learning_rate=1e-3, projector_lr=2e-3, weight_decay=0.1)
    trainer.args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    groups = trainer.create_optimizer().param_groups
    found = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    assert found == [(1, 2e-3, 0.1), (3, 2e-3, 0.0), (1, 1e-3, 0.1), (3, 1e-3, 0.0)]


def stage_callback(tmp_path: Path) -> Any:
    from clips.core.run_log import RunLog
    from llava_bridge.training.trainer import StageCallback, StageProgress

    progress = StageProgress("align", 4, RunLog(tmp_path), 0.0)
    nobody = SimpleNamespace(of_any_process=lambda *_: 0, is_requested=lambda: False)
    return StageCallback(progress, stage_trainer().gather_invalid, {}, 320, nobody, lambda: None)  # type: ignore[arg-type]


def test_too_many_bad_samples_and_a_loss_that_is_not_finite_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "compute_loss", lambda *_: torch.tensor(1.0))
    trainer, model = stage_trainer(), torch.nn.Linear(1, 1)
    trainer.compute_loss(model, {"invalid_samples": [(0, "a", "no such image")]})
    trainer.compute_loss(model, {"invalid_samples": [(0, "a", "no such image")]})  # the same one again
    two = r"align: 2 of 3 .* allows: 1 × no such image, 1 × not an image; the first: a: no such image$"
    with pytest.raises(UserError, match=two):
        trainer.compute_loss(model, {"invalid_samples": [(1, "b", "not an image")]})
    with pytest.raises(UserError, match=r"align: 1 of 3 samples .* allows: 1 × no such image; the first: a$"):
        stage_trainer(0.0).compute_loss(model, {"invalid_samples": [(0, "a", "no such image")]})
    monkeypatch.setattr(Trainer, "compute_loss", lambda *_: torch.tensor(float("nan")))
    monkeypatch.setattr(Trainer, "_maybe_log_save_evaluate", lambda *_: None)
    trainer = stage_trainer()
    trainer.compute_loss(model, {})
    trainer.state.global_step += 1
    trainer.compute_loss(model, {})
    for saves in (False, True):
        trainer.control = SimpleNamespace(should_log=False, should_save=saves)
        expected = (
            pytest.raises(UserError, match="align: the loss is nan in step 7;") if saves else contextlib.nullcontext()
        )
        with expected:  # before the checkpoint
            trainer._maybe_log_save_evaluate(None, 1.0)
    trainer.losses, trainer.control.should_save = [], False
    trainer._maybe_log_save_evaluate(None, 0.0)
    for norm in (float("inf"), float("nan"), -1.0):  # DeepSpeed has skipped the step
        with pytest.raises(UserError, match=f"align: the gradient's norm is {norm} in step 7;"):
            trainer._maybe_log_save_evaluate(None, norm)


def test_bad_samples_are_counted_over_all_processes_and_attempts(tmp_path, monkeypatch):
    from clips.loader.invalid_samples import restored
    from clips.parallel import distributed
    from llava_bridge.training import checkpoints

    monkeypatch.setattr(distributed, "all_gather_objects", lambda own: [own, [(1, "b", "of rank 1")]])
    monkeypatch.setattr(checkpoints, "barrier", lambda: None)
    trainer = stage_trainer(0.7)
    trainer.check_invalid(trainer.invalid.add([(0, "a", "of rank 0")]))
    assert trainer.gather_invalid().named == [(0, "a", "of rank 0"), (1, "b", "of rank 1")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for step in (4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.mark_complete(tmp_path / f"checkpoint-{step}", trainer.invalid, 1.5 * step)
    (tmp_path / "checkpoint-12").mkdir()  # its writing was interrupted
    start = checkpoints.last_checkpoint(tmp_path)
    assert start == tmp_path / "checkpoint-10"
    assert start is not None
    record = checkpoints.read_marker(start)
    assert record["seconds"] == 15.0
    trainer.invalid = restored(record["invalid_samples"])
    with pytest.raises(UserError, match="align: 3 of 3 samples are invalid"):
        trainer.check_invalid(trainer.invalid.add([(1, "b", "met before"), (7, "c", "after resuming")]))
    assert not (tmp_path / "checkpoint-12").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-10"}


def checkpoints_of(folder: Path, *steps: int) -> None:
    """Complete checkpoints of a few files each."""
    from llava_bridge.training.checkpoints import mark_complete

    for step in steps:
        states = folder / f"checkpoint-{step}" / f"global_step{step}"
        states.mkdir(parents=True)
        (states / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(bytes(range(256)) * step)
        (states.parent / "trainer_state.json").write_text("{}")
        mark_complete(states.parent, InvalidSamples(), 1.0)


@pytest.mark.parametrize("damage", ["four bytes", "cut", "absent", "record"])
def test_a_damaged_checkpoint_is_not_resumed_from(damage: str, tmp_path: Path, monkeypatch, capsys) -> None:
    from llava_bridge.training import checkpoints

    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(checkpoints, "barrier", lambda: None)
    checkpoints_of(tmp_path, 2, 4)
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    for step in (4, 2):
        file = tmp_path / f"checkpoint-{step}/global_step{step}/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
        if damage == "four bytes":
            file.write_bytes(file.read_bytes()[:100] + b"\xff\xfe\xfd\xfc" + file.read_bytes()[104:])
        elif damage == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        elif damage == "absent":
            file.unlink()
        else:
            file = tmp_path / f"checkpoint-{step}/complete"
            file.write_bytes(bytes(file.stat().st_size))
        if step == 4:
            assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
            told = capsys.readouterr().err.splitlines()
            assert told[0].startswith(f"{file}: ")
            assert told[1] == f"resuming from {tmp_path / 'checkpoint-2'}, the checkpoint before it"
            assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
        else:
            with pytest.raises(UserError, match=rf"{file.name}: .*; no earlier checkpoint is left"):
                checkpoints.last_checkpoint(tmp_path)
            assert file.parent.exists()


@pytest.mark.parametrize("error", [errno.EIO, errno.EFBIG, errno.EMFILE])
def test_an_error_of_the_disk_is_one_line_and_the_checkpoint_before_stays(error, tmp_path, monkeypatch) -> None:
    from transformers import Trainer

    from llava_bridge.training import checkpoints

    def save(trainer: Any, *_: Any) -> None:
        (tmp_path / "checkpoint-4").mkdir()
        torch.save(torch.zeros(1000), tmp_path / "checkpoint-4" / "states.pt")

    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(checkpoints, "barrier", lambda: None)
    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    checkpoints_of(tmp_path, 2)
    callback, trainer = stage_callback(tmp_path), stage_trainer()
    trainer.args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=4)

    def save_and_mark() -> None:
        trainer._save_checkpoint()
        callback.on_save(trainer.args, state, None)

    with failing_disk(error, monkeypatch), pytest.raises(UserError, match=f"^{tmp_path}.*cannot write") as raised:
        save_and_mark()
    assert "\n" not in str(raised.value)
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_an_unusual_first_loss_is_reported() -> None:
    from llava_bridge.training.trainer import first_loss_warning

    warned = [first_loss_warning(loss, 32_000) for loss in (math.log(32_000) + 0.9, 0.05, 12.0, 0.001)]
    assert warned[:2] == [None, None]
    assert str(warned[2]).startswith("the first loss, 12.0, is above 10.4, that of guessing among 32,000 tokens")
    assert str(warned[3]).startswith("the first loss is 0.0010, as if the answers were known")


def test_a_resumed_stage_logs_as_the_config_of_now_says_and_looks_at_its_first_loss(tmp_path, capsys):
    from transformers import TrainerState

    state = TrainerState(global_step=2, max_steps=9, logging_steps=5, save_steps=500)
    callback = stage_callback(tmp_path)
    callback.on_train_begin(SimpleNamespace(logging_steps=1, save_steps=3, eval_steps=None), state, None)
    assert (state.logging_steps, state.save_steps) == (1, 3)
    callback.progress.begin(0, 9)
    for step, told in ((2, False), (1, True)):
        state = TrainerState(global_step=step, max_steps=9)
        callback.on_log(SimpleNamespace(), state, None, logs={"loss": 9.0, "learning_rate": 0.1, "grad_norm": 1.0})
        assert ("above 5.8, that of guessing among 320 tokens" in capsys.readouterr().err) is told


def test_the_last_step_is_logged(tmp_path: Path) -> None:
    """Before, the final loss of eight steps that logged each fifth one was that of steps 2 to 5."""
    from transformers import TrainerControl, TrainerState

    callback, told = stage_callback(tmp_path), []
    for step in range(1, 9):
        control = TrainerControl(should_log=step == 5)
        callback.on_step_end(SimpleNamespace(device=None), TrainerState(global_step=step, max_steps=8), control)
        told += [step] * control.should_log
    assert told == [5, 8]
