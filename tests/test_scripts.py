"""The scripts: benchmarks compare what they say, LLaVA's settings are ours, the audit flags what it should."""

from __future__ import annotations

import argparse
import http.server
import importlib
import json
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from script_modules import load_script

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


class AlwaysASecond:
    """OpenVision's process, without JAX."""

    parameters = 1

    def __init__(self, *_: object) -> None:
        self.end = lambda: None

    def seconds(self, clock: str) -> float:
        return 1.0


TINY = ["--architecture", "clips-tiny", "--image-size", "16", "--steps", "1"]
MEASUREMENTS = {
    "checkpoint_stall": (TINY, {"waited", "lost", "bytes", "seconds"}),
    "roofline": ([], {"rates", "predicted", "seconds", "ratio"}),
    "vs_openvision": (
        ["--openvision", "x", "--jax-python", "x", "--image-size", "16", "--precisions", "fp32"],
        {"texts", "seconds", "times_as_fast"},
    ),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_are_written_as_json_lines(scripts, name: str, monkeypatch, tmp_path: Path):
    module, (words, names) = importlib.import_module(name), MEASUREMENTS[name]
    monkeypatch.setattr(module, "CASES", (("clips-tiny", 16, "clip", 4),), raising=False)
    monkeypatch.setattr(module, "REPEATS", 1, raising=False)
    monkeypatch.setattr(module, "OpenVision", AlwaysASecond, raising=False)
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    batch = [] if name == "roofline" else ["--batch", "2"]
    options = ["--threads", str(torch.get_num_threads()), "--rounds", "2", "--json", str(tmp_path / "lines")]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, *batch, *options])
    module.main()
    (line,) = map(json.loads, (tmp_path / "lines").read_text(encoding="utf-8").splitlines())
    assert line["script"] == f"{name}.py"
    assert names <= line.keys()


def test_every_benchmark_with_the_common_arguments_writes_json_lines():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in SCRIPTS.glob("*.py")}
    common = {name for name, text in texts.items() if "common_parser(__doc__)" in text} - {"random_llm"}  # no benchmark
    assert len(common) > 12
    assert all("    record(args, " in texts[name] for name in common)


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


def test_contrastive_losses_of_one_process_have_equal_gradients(scripts):
    leaves = tuple(scripts.losses.unit(6, "cpu").requires_grad_() for _ in range(2))
    sides = scripts.losses.contrastive_losses([scripts.losses.unit(14, "cpu") for _ in range(2)])
    found = {name: torch.autograd.grad(loss(*leaves, torch.tensor(14.0)), leaves) for name, loss in sides.items()}
    torch.testing.assert_close(found["ours"], found["naive"], atol=1e-6, rtol=1e-4)
    assert found["naive"][0].abs().max() > 0.01


def test_the_bridges_loss_is_compared_with_transformers_own_for_the_same_batch(scripts):
    args = argparse.Namespace(device="cpu", vocabulary=2000, json=None)
    sides = scripts.bridge.memory_sides(args)[0]
    losses = [loss().item() for loss in sides.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    table = scripts.bridge.memory_table(args)
    assert table.count("| transformers |") == table.count("| bridge |") == 1


ROOT_SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(ROOT_SCRIPTS))
    try:
        import compare_with_llava

        yield compare_with_llava
    finally:
        sys.path.remove(str(ROOT_SCRIPTS))


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
def test_the_status_says_whether_the_curves_agree(script, given, away, status, monkeypatch, capsys):
    ours = {"align": [3.0, 2.0], "instruct": [1.5, 1.0]}
    theirs = {**ours, "instruct": [1.5, 1.0 - away]}
    monkeypatch.setattr(script, "train_both", lambda args, folder: (ours, theirs))
    assert script.main(given) == status
    printed = capsys.readouterr().out
    assert "   2   1.000000" in printed
    assert f"largest difference {away:.2g}" in printed


def test_llavas_own_training_gets_the_settings_of_ours(script: Any, tmp_path: Path) -> None:
    from llava_bridge.data import ConversationSourceConfig
    from llava_bridge.training.stage_config import StageConfig
    from llava_bridge.training.train_config import LlavaTrainConfig

    sizes = {"global_batch_size": 4, "micro_batch_size": 2}
    stage = StageConfig(data=[ConversationSourceConfig(path="a.json")], learning_rate=3e-4, **sizes)
    config = LlavaTrainConfig(output="run", llava="start", align=stage, instruct=stage, seed=5)
    first, second = (script.their_options(config, name, tmp_path) for name in script.STAGES)
    for options in (first, second):
        assert (options["per_device_train_batch_size"], options["gradient_accumulation_steps"]) == (2, 2)
        assert (options["learning_rate"], options["warmup_ratio"], options["seed"]) == (3e-4, 0.03, 5)
    assert first["pretrain_mm_mlp_adapter"] == tmp_path / "projector" / "mm_projector.bin"
    assert second["pretrain_mm_mlp_adapter"] == first["output_dir"] / "mm_projector.bin"  # of its own first stage


SCRIPT = Path(__file__).parents[1] / "scripts" / "audit_dependencies.py"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    return load_script("audit_dependencies.py")


@pytest.mark.parametrize(
    ("license", "kind"),
    [
        ("Apache-2.0", "permissive"),
        ("MPL-2.0 AND MIT", "weak copyleft"),
        ("GPL-3.0-only OR MIT", "permissive"),
        ("GNU Lesser General Public License v2 or later (LGPLv2+)", "weak copyleft"),
        ("GPL-3.0, for Apache licensed programs", "strong copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "proprietary"),
        ("As you like", "unknown"),
        ("", "unstated"),
    ],
)
def test_licenses_are_of_a_kind(audit, license, kind):
    package = audit.Package(name="some", version="1", needed_by="us", license=license)
    assert package.kind == kind
    assert package.flagged == (kind not in {"permissive", "weak copyleft"})


def test_the_dependencies_of_the_project_have_licenses_that_it_may_use(audit, capsys):
    assert audit.main(["--only", "licenses"]) == 0
    printed = capsys.readouterr().out
    assert "FLAGGED" not in printed
    assert "transformers" in printed


def test_dependencies_of_dependencies_are_followed_and_reviewed_ones_are_not_flagged(audit):
    packages, missing = audit.needed(["open_clip_torch", "no-such-package-anywhere"], "us")
    needed_by = {package.name: package.needed_by for package in packages}
    assert (needed_by["open-clip-torch"], needed_by["timm"]) == ("us", "open-clip-torch")
    assert "pytest" not in needed_by  # an extra that no requirement names
    assert missing == ["no-such-package-anywhere"]
    package = audit.Package(name="nvidia-cublas", version="1", needed_by="torch", license="Proprietary")
    assert (package.kind, package.flagged) == ("proprietary", False)


class Osv(http.server.BaseHTTPRequestHandler):
    """A small OSV: safetensors has a known vulnerability."""

    def do_POST(self):
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}]
        affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
        known = [{"id": "PYSEC-2026-1", "summary": "s", "details": "d", "affected": affected}]
        body = json.dumps({"vulns": known} if name == "safetensors" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_known_vulnerabilities_are_flagged(audit, monkeypatch, capsys):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        arguments = ["--only", "vulnerabilities", "--service", f"http://127.0.0.1:{server.server_port}/v1/query"]
        monkeypatch.setattr(audit, "project_requirements", lambda extras: ["safetensors", "filelock"])
        assert audit.main(arguments) == 1
        server.shutdown()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "PYSEC-2026-1" in line]
    assert line.startswith("safetensors ")
    assert line.endswith(": 99.1")
