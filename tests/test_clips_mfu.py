"""FLOPs per sample and MFU in the log of a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import clips_world
import pytest
import torch

from clips.parallel.distributed_config import DistributedConfig
from clips.planning import mfu
from clips.planning.dry_run import fake_batch, fake_model
from clips.planning.mfu import MfuMeter, flops_per_sample


def test_mfu_of_a_run(tmp_path: Path):
    config = clips_world.train_config(tmp_path, tmp_path / "run")
    fake = fake_model(config.model, config.recipe)
    batch = fake_batch(fake, 4, 3) | {"target": torch.ones(4, 12, dtype=torch.long)}
    batch["target_mask"] = batch["target_mask"][:, :12]
    cpu: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32"}
    flops = flops_per_sample(config, batch, 1)
    counted = {"flops_per_sample": flops}  # alone, since a CPU's peak is not known
    assert MfuMeter(config, **cpu, processes=1).read(batch, 100.0) == counted
    longer = {**batch, "target_mask": torch.ones(4, 12, dtype=torch.bool)}
    more = flops_per_sample(config, longer, 1)
    assert flops < more
    kept: list[float] = []
    assert MfuMeter(config, **cpu, processes=1, counted=kept).read(batch, 1.0) == counted
    resumed = MfuMeter(config, **cpu, processes=1, counted=list(kept)).read(longer, 1.0)
    assert resumed == {"flops_per_sample": pytest.approx((flops + more) / 2)}
    stated = dataclasses.replace(config, distributed=DistributedConfig(device_peak_tflops=2.0))
    read = MfuMeter(stated, **cpu, processes=1).read(batch, 100.0)
    assert read == pytest.approx(counted | {"mfu": flops * 0.5e-10, "tflops": flops * 1e-10})
    halved = MfuMeter(stated, **cpu, processes=2).read(batch, 100.0)
    assert halved["mfu"] == pytest.approx(read["mfu"] / 2, rel=0.01)


def test_a_training_goes_on_where_its_flops_cannot_be_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: Any) -> float:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(mfu, "flops_per_sample", fail)
    config = clips_world.train_config(tmp_path, tmp_path / "run")
    of_run = MfuMeter(config, device=torch.device("cpu"), precision="fp32", processes=1)
    assert of_run.read({}, 1.0) == of_run.read({}, 1.0) == {}
    assert capsys.readouterr().err.count("FLOPs: cannot be counted (no such operator)") == 1  # said once
