"""Trainings in several processes, in every strategy, stopped and resumed, train what one process trains."""

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
from clips_world import assert_same_training, drive, is_equal, metrics, stopped_at, tensors_of, torchrun, train
from resume_driver import digest

from clips.errors import UserError
from clips.method.clips_model import build_model
from clips.parallel.distributed import DistributedContext
from clips.parallel.parallel_model import ParallelModel
from clips.train import train as train_counting_flops
from clips.training.run_dir import list_checkpoints
from clips.training.train_config import DistributedConfig

pytestmark = pytest.mark.timeout(1800)  # the trainings of ``two`` take 10 minutes beside other tests
FSDP: dict[str, Any] = {"distributed": {"strategy": "fsdp"}}
FIELDS: dict[str, Any] = {
    "optimizer": {"max_grad_norm": 5.0},
    "validation": {"source": {"path": "$data"}, "eval_steps": 3, "num_samples": 5},
    "logging_steps": 3,  # runs stop at step 4: an entry is of steps before and after
}
CAPTIONER = {"max_length": 12, "num_layers": 1, "width": 32}
MODEL = {"architecture": "clips-tiny", "image_size": 16, "context_length": 12}
ONE: dict[str, dict[str, Any]] = {
    "whole": FIELDS,
    "averaged": {**FIELDS, "ema_decay": 0.5},
    "causal": {  # texts in groups of like length: two of them in a process, four where there is one
        **FIELDS,
        "model": {**MODEL, "context_length": 24, "text_attention": "causal"},
        "recipe": {"name": "coca", "captioner": {"max_length": 24, "num_layers": 1}},
        "global_batch_size": 64,
        "max_steps": 2,
    },
    "siglip": {"recipe": {"name": "siglip"}},
    "siglip_captions": {"recipe": {"name": "siglip_captions", "captioner": CAPTIONER}},
    "caption_only": {"recipe": {"name": "caption_only", "captioner": CAPTIONER}},  # no logit scale
    "sentences": {"recipe": {"name": "sentences"}},
    "frozen": {
        "recipe": {"name": "clips", "captioner": CAPTIONER},
        "model": {**MODEL, "pretrained": "$encoder", "lock_text": True},
    },
}
"""Trainings in one process."""
RECIPES = ("siglip", "siglip_captions", "caption_only", "sentences", "frozen")
PARTS: dict[str, Any] = {"micro_batch_size": 1}
TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("whole", {}),
    "ddp_in_parts": ("whole", PARTS),
    "ddp_compiled": ("whole", {"distributed": {"torch_compile": True}}),
    "fsdp": ("whole", {"distributed": {"strategy": "fsdp", "activation_checkpointing": True}}),
    "fsdp_in_parts": ("whole", {**FSDP, **PARTS}),
    "fsdp_compiled": (
        "whole",
        {"distributed": {"strategy": "fsdp", "activation_checkpointing": True, "torch_compile": True}},
    ),
    "causal_ddp": ("causal", {}),
    "causal_fsdp": ("causal", FSDP),
    **{name: (name, {}) for name in RECIPES},
    **{f"{name}_in_parts": (name, PARTS) for name in RECIPES if name != "siglip"},
    **{f"{name}_fsdp": (name, FSDP) for name in ("caption_only", "frozen")},
    "averaged_again": ("averaged", FSDP),
    **{f"{name}_again": (name, {}) for name in RECIPES},
    "taken_up_ddp": ("whole", {}),
    "taken_up_fsdp": ("whole", FSDP),
}
"""Trainings in two processes: what one process trains the same, and further fields.

Those with "again" stop at step 4 and resume; those with "taken_up" resume one process's of step 4.
"""
NORMED = {
    **FIELDS,
    "model": {"architecture": "clips-rn-tiny", "image_size": 32, "context_length": 12},
    **FSDP,
    "ema_decay": 0.5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return clips_world.trained(data, tmp_path_factory.mktemp("encoder") / "encoder", max_steps=0, seed=1)


def configured(data: Path, output: Path, fields: dict[str, Any], encoder: Path | None = None, **more: Any) -> Any:
    text = json.dumps({**fields, **more}).replace("$data", str(data)).replace("$encoder", str(encoder))
    return clips_world.train_config(data, output, **json.loads(text))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, data: Path, encoder: Path) -> Path:
    """Trainings in one process: to the end, and two that stopped after their checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("one")
    for name, fields in ONE.items():
        (train_counting_flops if name == "whole" else train)(configured(data, folder / name, fields, encoder))
    for name in ("whole", "averaged"):
        with stopped_at(4):
            train(configured(data, folder / "stopped" / name, ONE[name]))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, data: Path, encoder: Path, one: Path) -> Path:
    """Trainings in two processes, those that end at step 4 in ``stopped``."""
    folder = tmp_path_factory.mktemp("two")
    plan = []
    for name, (reference, more) in TWO.items():
        if name.startswith("taken_up"):
            shutil.copytree(one / "stopped" / reference, folder / name)
        configured(data, folder / name, ONE[reference], encoder, **more)
        plan += [
            {"config": f"{folder / name}.json", "stop": stop} for stop in ([4] if "again" in name else []) + [None]
        ]
    for name in ("ddp", "fsdp", "averaged_again"):
        reference, more = TWO[name]
        configured(data, folder / "stopped" / name, ONE[reference], **more)
        plan.append({"config": f"{folder / 'stopped' / name}.json", "stop": 4})
    for name, stops in (("normed", [None]), ("normed_again", [4, None])):
        configured(data, folder / name, NORMED)
        plan += [{"config": f"{folder / name}.json", "stop": stop} for stop in stops]
    drive(folder, plan)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_two_processes_train_what_one_trains(one: Path, two: Path, name: str):
    assert_same_training(two / name, one / TWO[name][0])
    assert json.loads((two / name / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECIPES, "normed"])
def test_a_resumed_training_is_the_uninterrupted_one(two: Path, name: str):
    assert is_equal(two / f"{name}_again", two / name)
    assert name != "normed" or any(each.endswith("running_var") for each in tensors_of(two / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "averaged_again"])
def test_a_run_of_two_processes_resumes_in_one(data: Path, one: Path, two: Path, tmp_path: Path, name: str):
    shutil.copytree(two / "stopped" / name, tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000004"]
    reference = TWO[name][0]
    train(configured(data, tmp_path / "run", ONE[reference]))
    assert_same_training(tmp_path / "run", one / reference)


@pytest.mark.slow
def test_the_main_process_counts_flops_per_sample(one: Path, two: Path):
    alone, *shared = (
        metrics(folder)[-1] for folder in (one / "whole", two / "ddp", two / "fsdp", two / "ddp_in_parts")
    )
    for entry in shared:  # captions are padded to the longest of a process's batch
        assert entry["flops_per_sample"] == pytest.approx(alone["flops_per_sample"], rel=0.05)
    assert shared[0]["flops_per_sample"] == shared[2]["flops_per_sample"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_is_read_once_and_all_processes_hold_it(data: Path, one: Path, tmp_path: Path, strategy: str):
    """Weights, moments and average, each put together from both processes where they hold shards."""
    shutil.copytree(one / "stopped" / "averaged", tmp_path / "run")
    tensors = tensors_of(list_checkpoints(tmp_path / "run")[-1])
    configured(data, tmp_path / "run", ONE["averaged"], distributed={"strategy": strategy})
    driver = Path(__file__).parent / "resume_driver.py"
    process = torchrun(tmp_path / "log", str(driver), str(tmp_path / "run.json"))
    assert process.wait(300) == 0, (tmp_path / "log").read_text()[-5000:]
    found = [json.loads((tmp_path / f"run.rank{rank}.json").read_text()) for rank in range(2)]
    read = [rank["bytes"].get("tensors", 0) for rank in found]
    assert sum(read) == sum(value.nbytes for value in tensors.values())
    assert read[1] == 0 if strategy == "ddp" else 0.3 < read[1] / sum(read) < 0.5  # rank 0 reads what is not sharded
    expected = {
        kind: digest({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})
        for kind, prefix in (("weights", "model."), ("average", "average."))
    }
    moments = {name: value for name, value in tensors.items() if name.endswith((".exp_avg", ".exp_avg_sq"))}
    expected["moments"] = digest({name.removeprefix("optimizer."): value for name, value in moments.items()})
    for rank in found:
        assert {kind: rank[kind] for kind in expected} == expected
        assert rank["step"] == 4


@pytest.mark.slow
def test_a_checkpoint_of_another_model_stops_all_processes(data: Path, one: Path, tmp_path: Path):
    """The error of the process that checks is that of all: none waits for a broadcast that never comes."""
    shutil.copytree(one / "stopped" / "averaged", tmp_path / "run")
    recipe = {"name": "clips", "captioner": {"num_layers": 2}}
    configured(data, tmp_path / "run", ONE["averaged"], recipe=recipe)
    process = torchrun(tmp_path / "log", str(Path(__file__).parent / "resume_driver.py"), str(tmp_path / "run.json"))
    assert process.wait(120) != 0
    log = (tmp_path / "log").read_text()
    assert log.count("UserError: ") >= 2
    assert "is missing or has another shape; expected a checkpoint of this model" in log


@pytest.mark.slow
def test_two_processes_go_through_stages(data: Path, tmp_path: Path):
    stages = [{"max_steps": 3}, {"model.image_size": 32, "max_steps": 2, "distributed.strategy": "fsdp"}]
    config, _ = (configured(data, tmp_path / name, FIELDS, stages=stages) for name in ("one", "two"))
    process = torchrun(tmp_path / "log", "-m", "clips.cli", "train", "--config", str(tmp_path / "two.json"))
    assert process.wait(400) == 0, (tmp_path / "log").read_text()[-5000:]
    train(config)
    for stage in ("two.stages/1", "two"):
        assert_same_training(tmp_path / stage, tmp_path / stage.replace("two", "one"))
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_the_same_training(data: Path, one: Path, tmp_path: Path):
    configured(data, tmp_path / "run", FIELDS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
    command = [*launcher, "--master_port", port, "--module", "clips.cli", "train", "--config"]
    command.append(str(tmp_path / "run.json"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-5000:]
    assert_same_training(tmp_path / "run", one / "whole")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "first", "second"), [(6, 2, 3), (4, 4, 2)])
def test_a_training_resumes_in_another_number_of_processes(data, tmp_path, batch_size, first, second):
    """In four processes, each has one sample of the batch, and its losses need those of the others."""
    train(configured(data, tmp_path / "one", FIELDS, global_batch_size=batch_size))
    for processes, stop in ((first, 4), (second, None)):
        for name, way in {"ddp": {}, "fsdp": FSDP}.items():
            configured(data, tmp_path / name, FIELDS, global_batch_size=batch_size, **way)
        plan = [{"config": str(tmp_path / f"{name}.json"), "stop": stop} for name in ("ddp", "fsdp")]
        drive(tmp_path, plan, processes)
    assert "resuming from step 4" in (tmp_path / "log").read_text()
    for name in ("ddp", "fsdp"):
        assert_same_training(tmp_path / name, tmp_path / "one")
        assert json.loads((tmp_path / name / "summary.json").read_text())["processes"] == second


@pytest.mark.slow
def test_preempted_processes_wait_for_the_checkpoint(data: Path, tmp_path: Path):
    output = tmp_path / "preempted"
    reading = {"sources": [{"path": str(data)}], "num_workers": 1}
    clips_world.train_config(data, output, max_steps=50, save_steps=100, data=reading)
    plan = [{"config": str(output.with_suffix(".json")), "stop": None, "preempt": 2}]
    assert clips_world.start_drive(tmp_path, plan).wait(200) != 0
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
@pytest.mark.parametrize("name", ["whole", "causal"])
def test_compiled_layers_train_alike(data: Path, tmp_path: Path, one: Path, name: str):
    train(configured(data, tmp_path / "compiled", ONE[name], distributed={"torch_compile": True}))
    assert_same_training(tmp_path / "compiled", one / name)


def test_batch_norms_see_whole_batches_or_nothing(data: Path, tmp_path: Path):
    with pytest.raises(UserError, match="micro_batch_size: expected null with batch norms"):
        train(clips_world.train_config(data, tmp_path / "x", model=NORMED["model"], micro_batch_size=2))


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
from clips.commandline.commands import report_error
print("started", flush=True)
if os.environ["RANK"] in {ranks!r}:
    sys.exit(report_error("tool", "data: this is wrong"))
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
