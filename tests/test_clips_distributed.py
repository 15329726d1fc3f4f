"""One training in two processes, spread in every way: what it comes to is what one process would make of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import clips_world
import pytest
import torch
from clips_world import is_equal, metrics, stopped_at, tensors_of, trained

from clips.errors import UserError
from clips.method.clips_model import build_model
from clips.parallel.distributed import DistributedContext
from clips.parallel.distributed_config import DistributedConfig
from clips.parallel.parallel_model import ParallelModel
from clips.train import train
from clips.training.run_dir import list_checkpoints

FIELDS: dict[str, Any] = {
    "optimizer": {"max_grad_norm": 5.0},
    "validation": {"eval_steps": 3, "num_samples": 5},
    "logging_steps": 3,  # runs stop at step 4: an entry is of steps before and after
}
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp_in_parts": {"micro_batch_size": 1},
    "fsdp": {"distributed": {"strategy": "fsdp", "activation_checkpointing": True}},
    "fsdp_in_parts": {"distributed": {"strategy": "fsdp"}, "micro_batch_size": 1},
}
RESUMED = ("ddp", "fsdp")  # micro-batches leave nothing in a checkpoint
COMPILED: dict[str, dict[str, Any]] = {  # to the end only: compiling takes its time
    "ddp_compiled": {"distributed": {"torch_compile": True}},
    "fsdp_compiled": {"distributed": {"strategy": "fsdp", "activation_checkpointing": True, "torch_compile": True}},
}
CAUSAL: dict[str, Any] = {  # texts in groups of like length: two of them in a process, four where there is one
    "model": {"architecture": "clips-tiny", "image_size": 16, "context_length": 24, "text_attention": "causal"},
    "recipe": {"name": "coca", "captioner": {"max_length": 24, "num_layers": 1}},
    "global_batch_size": 64,
    "max_steps": 2,
}
CAUSAL_WAYS = ("ddp", "fsdp")
NORMED: dict[str, Any] = {
    "model": {"architecture": "clips-rn-tiny", "image_size": 32, "context_length": 12},
    "distributed": {"strategy": "fsdp"},
    "ema_decay": 0.5,
}


def torchrun(log: Path, *command: str, processes: int = 2) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *command)
    with log.open("wb") as stream:
        return subprocess.Popen([sys.executable, "-m", *launcher], env=environment, stderr=stream, stdout=stream)


def processes_of(output: Path) -> int:
    return int(json.loads((output / "summary.json").read_text())["processes"])


def start_drive(folder: Path, plan: list[dict[str, Any]], *options: str, processes: int = 2) -> subprocess.Popen[bytes]:
    (folder / "plan.json").write_text(json.dumps(plan))
    command = (*options, str(Path(__file__).parent / "distributed_driver.py"), str(folder / "plan.json"))
    return torchrun(folder / "log", *command, processes=processes)


def drive(folder: Path, plan: list[dict[str, Any]], processes: int = 2) -> None:
    assert start_drive(folder, plan, processes=processes).wait(400) == 0, (folder / "log").read_text()[-5000:]


def without_key_bias(name: str, value: torch.Tensor) -> torch.Tensor:
    """A bias on attention's keys has no effect and a gradient of pure rounding, which Adam blows up to full steps."""
    if name.endswith(("in_proj_bias", "qkv.bias")):
        query, _, values = value.chunk(3)
        return torch.cat([query, values])
    return value.chunk(2)[1] if name.endswith("key_value.bias") else value


def assert_same_training(output: Path, expected: Path) -> None:
    for mine, theirs in zip(metrics(output), metrics(expected), strict=True):
        for name in ("loss", "contrastive_loss", "caption_loss", "grad_norm", "logit_scale"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), (output.name, name)
        found, wanted = ({key: entry[key] for key in entry if key.startswith("val_")} for entry in (mine, theirs))
        assert found == wanted
    wanted = tensors_of(expected)
    for name, value in tensors_of(output).items():
        difference = without_key_bias(name, value) - without_key_bias(name, wanted[name])
        # Adam turns rounding in a gradient near zero into a step: single entries may differ, not the whole.
        assert difference.abs().mean() < 1e-6, (output.name, name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


def fields(data: Path, **more: Any) -> dict[str, Any]:
    return {**FIELDS, "validation": {**FIELDS["validation"], "source": {"path": str(data)}}, **more}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Path]:
    """Trainings in one process: to the end, and one that stopped after its checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("one")
    train(clips_world.train_config(data, folder / "whole", **fields(data)))
    with stopped_at(4):
        train(clips_world.train_config(data, folder / "stopped", **fields(data)))
    train(clips_world.train_config(data, folder / "causal", **fields(data, **CAUSAL)))
    return {name: folder / name for name in ("whole", "stopped", "causal")}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, data: Path, one: dict[str, Path]) -> Path:
    """Trainings in two processes: each way to the end, each way stopped at step 4, and `one`'s taken up each way."""
    folder = tmp_path_factory.mktemp("two")
    plan = []
    for name, way in WAYS.items():
        for kind, stop in (("whole", None), ("stopped", 4), ("taken_up", None))[: 3 if name in RESUMED else 1]:
            output = folder / kind / name
            if kind == "taken_up":
                shutil.copytree(one["stopped"], output)
            clips_world.train_config(data, output, **fields(data, **way))
            plan.append({"config": str(output.with_suffix(".json")), "stop": stop})
    for name, way in COMPILED.items():
        clips_world.train_config(data, folder / "whole" / name, **fields(data, **way))
        plan.append({"config": str(folder / "whole" / f"{name}.json"), "stop": None})
    for name in CAUSAL_WAYS:
        output = folder / "causal" / name
        clips_world.train_config(data, output, **fields(data, **CAUSAL, **WAYS[name]))
        plan.append({"config": str(output.with_suffix(".json")), "stop": None})
    for name, stops in (("normed", [None]), ("normed_again", [4, None])):
        clips_world.train_config(data, folder / name, **fields(data, **NORMED))
        plan += [{"config": str((folder / name).with_suffix(".json")), "stop": stop} for stop in stops]
    drive(folder, plan)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", [*WAYS, *COMPILED])
def test_two_processes_train_what_one_trains(one: dict[str, Path], two: Path, way: str):
    assert_same_training(two / "whole" / way, one["whole"])
    assert processes_of(two / "whole" / way) == 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_main_process_counts_flops_per_sample(two, one, way):
    alone, shared = (metrics(folder)[-1] for folder in (one["whole"], two / "whole" / way))
    # captions are padded to the longest of a process's batch
    assert shared["flops_per_sample"] == pytest.approx(alone["flops_per_sample"], rel=0.05)
    assert metrics(two / "whole" / "ddp_in_parts")[-1]["flops_per_sample"] == shared["flops_per_sample"]


@pytest.mark.slow
@pytest.mark.parametrize("way", CAUSAL_WAYS)
def test_groups_of_like_length_in_two_processes(one: dict[str, Path], two: Path, way: str):
    assert_same_training(two / "causal" / way, one["causal"])


@pytest.mark.slow
def test_two_processes_go_through_stages(data: Path, tmp_path: Path):
    stages = [{"max_steps": 3}, {"model.image_size": 32, "max_steps": 2, "distributed.strategy": "fsdp"}]
    for name in ("one", "two"):
        clips_world.train_config(data, tmp_path / name, **fields(data, stages=stages))
    process = torchrun(tmp_path / "log", "-m", "clips.cli", "train", "--config", str(tmp_path / "two.json"))
    assert process.wait(400) == 0, (tmp_path / "log").read_text()[-5000:]
    trained(data, tmp_path / "one", **fields(data, stages=stages))
    for stage in ("two.stages/1", "two"):
        assert_same_training(tmp_path / stage, tmp_path / stage.replace("two", "one"))
    assert processes_of(tmp_path / "two") == 2


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_the_same_training(data: Path, one: dict[str, Path], tmp_path: Path):
    clips_world.train_config(data, tmp_path / "run", **fields(data, **WAYS["ddp"]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
    command = [*launcher, "--master_port", port, "--module", "clips.cli", "train", "--config"]
    command.append(str(tmp_path / "run.json"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-5000:]
    assert processes_of(tmp_path / "run") == 2
    assert_same_training(tmp_path / "run", one["whole"])


@pytest.mark.slow
@pytest.mark.parametrize("way", RESUMED)
def test_a_run_of_one_process_resumes_in_two(one: dict[str, Path], two: Path, way: str):
    assert_same_training(two / "taken_up" / way, one["whole"])


@pytest.mark.slow
@pytest.mark.parametrize("way", RESUMED)
def test_a_run_of_two_processes_resumes_in_one(data: Path, one: dict[str, Path], two: Path, tmp_path: Path, way: str):
    output = tmp_path / way
    shutil.copytree(two / "stopped" / way, output)
    assert [path.name for path in list_checkpoints(output)] == ["step-00000002", "step-00000004"]
    train(clips_world.train_config(data, output, **fields(data)))
    assert_same_training(output, one["whole"])


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "first", "second"), [(6, 2, 3), (4, 4, 2)])
def test_a_training_resumes_in_another_number_of_processes(data, tmp_path, batch_size, first, second):
    """In four processes, each has one sample of the batch, and its losses need those of the others."""
    more = {"global_batch_size": batch_size}
    train(clips_world.train_config(data, tmp_path / "one", **fields(data, **more)))
    ways = {"ddp": {}, "fsdp": {"distributed": {"strategy": "fsdp"}}}
    for processes, stop in ((first, 4), (second, None)):
        for name, way in ways.items():
            clips_world.train_config(data, tmp_path / name, **fields(data, **more, **way))
        drive(tmp_path, [{"config": str(tmp_path / f"{name}.json"), "stop": stop} for name in ways], processes)
    assert "resuming from step 4" in (tmp_path / "log").read_text()
    for name in ways:
        assert_same_training(tmp_path / name, tmp_path / "one")
        assert processes_of(tmp_path / name) == second


@pytest.mark.slow
def test_shards_are_averaged_as_the_whole_is(data: Path, tmp_path: Path):
    """Under FSDP2, validated with the average, stopped, and resumed: in two processes, then in one."""
    for name in ("again", "taken_up"):
        clips_world.train_config(data, tmp_path / name, **fields(data, ema_decay=0.5, distributed={"strategy": "fsdp"}))
    drive(tmp_path, [{"config": str(tmp_path / f"{name}.json"), "stop": 4} for name in ("again", "taken_up")])
    drive(tmp_path, [{"config": str(tmp_path / "again.json"), "stop": None}])
    for name in ("taken_up", "one"):
        train(clips_world.train_config(data, tmp_path / name, **fields(data, ema_decay=0.5)))
    assert_same_training(tmp_path / "again", tmp_path / "one")
    assert_same_training(tmp_path / "taken_up", tmp_path / "one")


@pytest.mark.slow
def test_batch_norms_statistics_are_the_same_after_a_resume(two: Path):
    assert any(name.endswith("running_var") for name in tensors_of(two / "normed"))
    assert is_equal(two / "normed", two / "normed_again")


@pytest.mark.slow
def test_preempted_processes_wait_for_the_checkpoint(data: Path, tmp_path: Path):
    output = tmp_path / "preempted"
    reading = {"sources": [{"path": str(data)}], "num_workers": 1}
    clips_world.train_config(data, output, max_steps=50, save_steps=100, data=reading)
    plan = [{"config": str(output.with_suffix(".json")), "stop": None, "preempt": 2}]
    assert start_drive(tmp_path, plan).wait(200) != 0
    log = (tmp_path / "log").read_text()
    assert "stopped and saved after step 3; the same command resumes from there" in log, log
    assert [path.name for path in list_checkpoints(output)] == ["step-00000003"]


def test_processes_share_the_writing_of_replicated_weights(data: Path, tmp_path: Path):
    config = clips_world.train_config(data, tmp_path / "x", recipe={"name": "clips"})
    encoder = build_model(config.model, config.recipe, 0)
    shares = []
    for rank in range(3):
        parallel = ParallelModel(encoder, DistributedConfig(), config.optimizer, DistributedContext())
        parallel.processes = DistributedContext(rank=rank, count=3)
        shares.append(parallel.select_own(encoder.state_dict()))
    assert sorted(name for share in shares for name in share) == sorted(encoder.state_dict())
    bytes_of = [sum(value.nbytes for value in share.values()) for share in shares]
    assert max(bytes_of) < 0.6 * sum(bytes_of)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("kind", "more"), [("whole", {}), ("causal", CAUSAL)])
def test_compiled_layers_train_alike(data: Path, tmp_path: Path, one: dict[str, Path], kind: str, more: dict[str, Any]):
    output = tmp_path / "compiled"
    train(clips_world.train_config(data, output, **fields(data, **more, distributed={"torch_compile": True})))
    assert_same_training(output, one[kind])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"distributed": {"hang_timeout": 0}}, "distributed.hang_timeout: expected a number above 0, got 0"),
    ],
)
def test_incompatible_settings_are_rejected(data: Path, tmp_path: Path, more: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        clips_world.train_config(data, tmp_path / "x", **more)


def test_batch_norms_see_whole_batches_or_nothing(data: Path, tmp_path: Path):
    model = {"architecture": "clips-rn-tiny", "image_size": 32, "context_length": 12}
    with pytest.raises(UserError, match="micro_batch_size: expected null with batch norms"):
        train(clips_world.train_config(data, tmp_path / "x", model=model, micro_batch_size=2))


def test_bf16_is_entered_inside_the_model(data: Path, tmp_path: Path):
    config = clips_world.train_config(data, tmp_path / "x", recipe={"name": "clip"})
    model = build_model(config.model, config.recipe, 0)
    seen: list[torch.dtype] = []
    model.clip.visual.transformer.resblocks[0].mlp.c_fc.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    batch = {"image": torch.zeros(2, 3, 16, 16), "web": torch.ones(2, 12, dtype=torch.int64)}
    model(batch)
    model(batch, bf16=True)
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "01"])
def test_a_users_error_of_any_process_ends_torchrun(tmp_path: Path, ranks: str):
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import os, sys, time
from clips.commandline.commands import _report_error
print("started", flush=True)
if os.environ["RANK"] in {ranks!r}:
    sys.exit(_report_error("tool", "data: this is wrong"))
time.sleep(300)
"""
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "--max-restarts", "3", str(script)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode != 0
    assert done.stdout.count("started") <= 2
    assert 1 <= done.stderr.splitlines().count("tool: data: this is wrong") <= len(ranks)
