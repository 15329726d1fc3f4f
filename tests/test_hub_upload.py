"""Trained models are directories that the Hub's own command uploads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import ModelCard
from repo_server import Hub

from clips.model_card import write_card


def test_the_documented_command_uploads_a_model_with_its_card(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "tensorboard").mkdir(parents=True)
    (model / "tensorboard/events").write_bytes(b"x")
    (model / "model.safetensors").write_bytes(b"\0weights")
    stages = {"align": {"steps": 5, "samples_seen": 40, "loss": 2.0}}
    write_card(model, "llava", parts={"encoder": "runs/mine", "LLM": None}, stages=stages, seed=3)
    hub = type("Played", (Hub,), {"folder": tmp_path / "hub", "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [str(Path(sys.executable).with_name("hf")), "upload", "org/mine", str(model), "--private"]
        online = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HUB_OFFLINE": "0"}
        mine = {"HF_TOKEN": "hf_" + "a1B2" * 9, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [*command, "--exclude", "checkpoints/*", "--exclude", "tensorboard/*"],
            env={**os.environ, **online, **mine},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    pushed = tmp_path / "hub/org/mine"
    assert {path.name for path in pushed.iterdir()} == {".private", "README.md", "model.safetensors"}
    assert (pushed / "model.safetensors").read_bytes() == b"\0weights"
    card = ModelCard.load(pushed / "README.md")
    assert (card.data.library_name, card.data.license) == ("transformers", "unknown")
    assert (
        "| encoder | `runs/mine` |\n| align | 5 steps, 40 samples, loss 2.000 at the end |\n| seed | 3 |" in card.text
    )
