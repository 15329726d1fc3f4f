"""What a training run says while it runs: lines for people, ``metrics.jsonl`` for the report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from llava_bridge.training.launch import is_main_process, log_rank0

LOG_INTERVAL_SECONDS = 5.0


class StageProgress:
    """Follows one stage.

    Args:
        stage: its name.
        batch_size: samples in a step.
        metrics: the JSON lines file; lines of other stages in it are kept.
        since: when the stage began, on the clock ``time.monotonic``, interruptions and lost work left out.
    """

    def __init__(self, stage: str, batch_size: int, metrics: Path, since: float) -> None:
        self.stage = stage
        self.batch_size = batch_size
        self.metrics = metrics
        self.since = since
        self.last_loss = float("nan")
        self._total = self._first = 0
        self._started = self._said = 0.0

    @property
    def seconds(self) -> float:
        """What the stage has taken until now: of earlier attempts, as much as this one goes on from."""
        return time.monotonic() - self.since

    def begin(self, step: int, total: int) -> None:
        """Training starts after ``step`` of ``total``; lines of later steps, from a lost attempt, are dropped."""
        self._first, self._total = step, total
        self._started = time.monotonic()
        if not is_main_process():
            return
        lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        rows = [json.loads(line) for line in lines]
        kept = [row for row in rows if row["stage"] != self.stage or row["step"] <= step]
        self.metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.last_loss = next((row["loss"] for row in reversed(kept) if row["stage"] == self.stage), float("nan"))

    def log(self, step: int, logs: dict[str, Any]) -> None:
        """Record HF Trainer's ``logs`` after ``step``, and say so every few seconds and at the end."""
        now = time.monotonic()
        rate = (step - self._first) * self.batch_size / max(now - self._started, 1e-9)
        self.last_loss = float(logs["loss"])
        row = {
            "stage": self.stage,
            "step": step,
            "samples_seen": step * self.batch_size,
            "loss": self.last_loss,
            "lr": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "samples_per_second": round(rate, 2),
            "time": round(time.time(), 2),
        }
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if now - self._said >= LOG_INTERVAL_SECONDS or step == self._total:
            self._said = now
            left = (self._total - step) * self.batch_size / rate
            log_rank0(
                f"{self.stage}: step {step}/{self._total}  loss {self.last_loss:.4f}  {rate:.0f} samples/s  "
                f"{int(left) // 60}:{int(left) % 60:02d} left"
            )
