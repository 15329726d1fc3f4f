"""The completion that docs/installing.md gives, in bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import ROOT


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["clips", "re"], ["recaption"]),
        (["clips-bench", "study", "p"], ["plan", "power"]),
        (["clips", "train", "--data.so"], ["--data.sources"]),
        (["llava-bridge", "swap", "llava", "--enc"], ["--encoder"]),
    ],
)
def test_words_are_completed(words: list[str], expected: list[str]) -> None:
    text = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    function = text.partition("```bash\n")[2].partition("```")[0]
    script = f'{function}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _clips_suite; echo "${{COMPREPLY[@]}}"'
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(["bash", "-c", script, "bash", *words], env={**os.environ, "PATH": path},
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert ended.stdout.split() == expected
