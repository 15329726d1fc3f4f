"""Progress of a training run: log lines, and ``metrics.jsonl`` for the report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from llava_bridge.training.launch import is_main_process, log_rank0

LOG_INTERVAL_SECONDS = 5.0


class StageProgress:
    """Logs the steps of one stage.

    Args:
        stage: its name.
        batch_size: samples per step.
        metrics: the JSON lines file, also of other stages.
        start_time: of the stage, on the clock ``time.monotonic``, without interruptions and lost work.
    """

    def __init__(self, stage: str, batch_size: int, metrics: Path, start_time: float) -> None:
        self.stage = stage
        self.batch_size = batch_size
        self.metrics = metrics
        self.start_time = start_time
        self.last_loss = float("nan")
        self._total = self._first = 0
        self._resume_time = self._last_line = 0.0

    @property
    def seconds(self) -> float:
        """Elapsed time of the stage, with the time before the checkpoint that it has resumed from."""
        return time.monotonic() - self.start_time

    def begin(self, step: int, total: int) -> None:
        """Start after ``step`` of ``total``; lines of later steps, from a lost attempt, are deleted."""
        self._first, self._total = step, total
        self._resume_time = time.monotonic()
        if not is_main_process():
            return
        lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        rows = [json.loads(line) for line in lines]
        rows = [row for row in rows if row["stage"] != self.stage or row["step"] <= step]
        self.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.last_loss = next((row["loss"] for row in reversed(rows) if row["stage"] == self.stage), float("nan"))

    def log(self, step: int, logs: dict[str, Any]) -> None:
        """Record HF Trainer's ``logs`` after ``step``; print a line every few seconds and at the end."""
        now = time.monotonic()
        rate = (step - self._first) * self.batch_size / max(now - self._resume_time, 1e-9)
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
        if now - self._last_line >= LOG_INTERVAL_SECONDS or step == self._total:
            self._last_line = now
            left = (self._total - step) * self.batch_size / rate
            log_rank0(
                f"{self.stage}: step {step}/{self._total}  loss {self.last_loss:.4f}  {rate:.0f} samples/s  "
                f"{int(left) // 60}:{int(left) % 60:02d} left"
            )
