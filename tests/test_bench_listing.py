"""`clips-bench list` says how much there is of everything, and is there at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.tasks.list_command import KNOWN_DATASETS, ListConfig, run_list
from benchmarks.tasks.registry import BENCHMARKS


def test_each_benchmark_has_items_size_and_license(capsys):
    run_list(ListConfig())
    lines = {line.split("  ")[0] or line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert BENCHMARKS.keys() <= lines.keys()
    assert lines["mmvet"].split() == [
        "mmvet", "llava", "218", "67", "MB", "CC", "BY-NC", "4.0", *BENCHMARKS["mmvet"].about.split()
    ]  # fmt: skip
    assert lines["sugarcrepe_mcq"].split()[1:4] == ["llava", "7,511", "MIT"]
    assert "5,000  6.6 GB  CC BY 4.0 (captions)" in lines["COCO"]
    assert lines["choice"].split()[1:3] == ["encoder", "yours"]


def test_the_list_imports_no_model_library():
    code = "import sys; sys.modules.update(torch=None, transformers=None); from benchmarks.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "9,000" in done.stdout


def test_the_protocols_page_has_the_same_numbers_of_items():
    told = (Path(__file__).parents[1] / "docs" / "protocols.md").read_text(encoding="utf-8")
    items = {name: entry.items for name, entry in BENCHMARKS.items() if entry.items}
    items |= {known.name: known.items for sets in KNOWN_DATASETS.values() for known in sets}
    assert {name: count for name, count in items.items() if f"{count:,}" not in told} == {}
