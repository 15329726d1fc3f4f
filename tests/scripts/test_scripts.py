"""The scripts: benchmarks compare what they say, LLaVA's settings are ours, the audit flags what it should."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from script_modules import load_script

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def scripts():
    """The benchmarks as modules, under the names by which they import each other."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import loss_memory
        import measure
        import step_vs_open_clip

        yield argparse.Namespace(measure=measure, losses=loss_memory, open_clip=step_vs_open_clip)
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


@pytest.mark.parametrize("repeat", [(), ("--repeat", "2")])
@pytest.mark.usefixtures("scripts")
def test_measurements_are_written_as_json_lines(repeat: tuple[str, ...], monkeypatch, tmp_path: Path):
    module = load_script("bench/mfu.py")
    monkeypatch.setattr(module, "SECONDS_OF_PRODUCTS", 0.01)
    words = (
        "--architecture clips-tiny --image-size 16 --batch 2 --recipes clip --precisions fp32 --matrix 16 --rounds 2"
    )
    options = [*words.split(), "--threads", str(torch.get_num_threads()), *repeat, "--json", str(tmp_path / "lines")]
    monkeypatch.setattr(sys, "argv", ["some/mfu.py", *options])
    try:
        module.main()
    finally:
        torch.use_deterministic_algorithms(False)
    lines = list(map(json.loads, (tmp_path / "lines").read_text(encoding="utf-8").splitlines()))
    assert all(line["script"] == "mfu.py" and line["arguments"]["batch"] == 2 for line in lines)
    if repeat:
        assert [(line["deterministic"], line["unequal"]) for line in lines] == [(False, []), (True, [])]
    else:
        assert [line["flops"] > 0 and line["mfu"]["median"] > 0 for line in lines] == [True]


def test_every_benchmark_writes_json_lines():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in SCRIPTS.glob("*.py") if path.stem != "measure"}
    assert all("common_parser(__doc__)" in text and "    record(args, " in text for text in texts.values())


@pytest.mark.usefixtures("scripts")
def test_the_commands_of_the_gpu_kit_have_arguments_of_their_parsers(monkeypatch, tmp_path: Path):
    run = str(SCRIPTS.parent / "gpu/run.sh")
    listed = subprocess.run(["bash", run, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    scripts = [line.partition(": ")[2].split() for line in listed if ".py" in line]
    for name, *words in scripts:
        monkeypatch.setattr(sys, "argv", [name, *words, "--device", "cpu", "--json", str(tmp_path / "lines")])
        found = load_script(f"bench/{name}").arguments()  # ends with status 2 for an unknown argument
        assert found.json == tmp_path / "lines", words
    on_cpus = {"measure.py", "growth.py"}
    assert {name for name, *_ in scripts} == {path.name for path in SCRIPTS.glob("*.py")} - on_cpus
    done = subprocess.run(["bash", run, tmp_path / "out"], env={"KIT": str(tmp_path)}, capture_output=True, check=False)
    assert (done.returncode, b"expected the folder that scripts/gpu/kit.sh makes" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_the_gpu_kit_skips_what_ended_well(monkeypatch, tmp_path: Path):
    """A stand-in for Python fails at the second command of a part, and only it runs again."""
    for folder in ("kit/site", "kit/data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "kit/data.tar.gz").touch()
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$2" >> {tmp_path}/calls\ncase "$*" in *7b*) exit $(cat {tmp_path}/status);; esac\n'
    )
    python.chmod(0o755)
    command = ["bash", str(SCRIPTS.parent / "gpu/run.sh"), str(tmp_path / "out"), "bridge"]
    monkeypatch.setenv("KIT", str(tmp_path / "kit"))
    monkeypatch.setenv("PYTHON", str(python))
    for status, calls in ((1, 2), (0, 3), (0, 3)):
        (tmp_path / "status").write_text(str(status))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, f"{status} commands did not end well" in done.stdout) == (status, True), done
        assert len((tmp_path / "calls").read_text().splitlines()) == calls
    assert (tmp_path / "out/log.txt").read_text().count("== bridge: ") == 3


def test_products_with_another_dtype_are_counted_as_plain_ones(scripts):
    bias, one, other = torch.ones(7), torch.ones(5, 3), torch.ones(3, 7)
    assert scripts.measure.flops(lambda: torch.addmm(bias, one, other)) == 2 * 5 * 3 * 7
    assert scripts.measure.addmm_flops((7,), (5, 3), (3, 7), torch.float32, out_shape=(5, 7)) == 2 * 5 * 3 * 7


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


def test_the_dependencies_have_licenses_that_the_project_may_use():
    """The vulnerabilities need a network, so pip-audit is told to print its version only."""
    bash = ["bash", str(SCRIPTS.parent / "audit.sh"), "--version"]
    done = subprocess.run(bash, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "transformers" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "flagged"),
    [
        ('allowed="Apache;', 'allowed="', "Apache"),  # a license that is not allowed
        (" docutils ", " ", "GNU General Public License"),  # next to one that is
        (" sentencepiece ", " ", "UNKNOWN"),  # none that is stated
    ],
)
def test_a_license_that_the_project_may_not_use_is_flagged(tmp_path, old, new, flagged):
    script = (SCRIPTS.parent / "audit.sh").read_text()
    assert old in script
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/common.sh").write_bytes((SCRIPTS.parent / "common.sh").read_bytes())
    (tmp_path / "scripts/audit.sh").write_text(script.replace(old, new))
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    bash = ["bash", str(tmp_path / "scripts/audit.sh"), "--version"]
    done = subprocess.run(bash, capture_output=True, text=True, check=False)
    assert (done.returncode, flagged in done.stderr) == (1, True), done.stderr


def test_tables_of_reports_replace_those_of_documents(tmp_path: Path) -> None:
    script = SCRIPTS.parent / "insert_tables.py"
    (tmp_path / "table.md").write_text(
        "# Title\n\n| model   |   R@1 |\n|:--------|------:|\n| clip    |  12.1 |\n\n| other |\n"
    )
    text = "before\n<!-- table: {} -->\n| old |\n| --- |\n| 1 |\n\nafter\n| own |\n"
    document = tmp_path / "page.md"
    document.write_text(text.format("table.md") + text.format("missing.md"))
    done = subprocess.run([sys.executable, script, "page.md"], cwd=tmp_path, capture_output=True, text=True, check=True)
    inserted = "before\n<!-- table: table.md -->\n| model | R@1 |\n| :--- | ---: |\n| clip | 12.1 |\n\nafter\n| own |\n"
    assert document.read_text() == inserted + text.format("missing.md")
    assert done.stdout == "page.md: missing.md does not exist here, so its table is unchanged\n"
    (tmp_path / "table.md").write_text("no table\n")
    broken = subprocess.run(
        [sys.executable, script, "page.md"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert broken.returncode == 2
    assert broken.stderr.splitlines()[-1] == "table.md: no table"
    assert document.read_text() == inserted + text.format("missing.md")


def test_a_table_below_a_heading_is_found_by_its_anchor(tmp_path: Path) -> None:
    script = SCRIPTS.parent / "insert_tables.py"
    (tmp_path / "report.md").write_text(
        "| first |\n\n# Main\n| main |\n\n## By category\n\n| words |\n\n| second |\n\n## Other\n| other |\n"
    )
    document = tmp_path / "page.md"
    document.write_text("<!-- table: report.md#by-category -->\n| old |\n")
    subprocess.run([sys.executable, script, document], cwd=tmp_path, check=True)
    assert document.read_text() == "<!-- table: report.md#by-category -->\n| words |\n"
    document.write_text("<!-- table: report.md#costs -->\n| old |\n")
    done = subprocess.run([sys.executable, script, document], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "report.md: no table below a heading #costs\n")
    assert document.read_text() == "<!-- table: report.md#costs -->\n| old |\n"
