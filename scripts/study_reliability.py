"""Kill the runner of a study with -9 repeatedly, and compare its table with that of an undisturbed study.

    python scripts/study_reliability.py --kills 30
    python scripts/study_reliability.py --kills 30 --study scripts/studies/demo.yaml     # hours

A study (by default a small one with real programs: scenes, two encoders, retrieval) runs undisturbed. Then a copy runs
in another directory, its runner killed at random moments until the number of kills is reached, and to its end. Table,
metrics, per-item scores, fingerprints and weights must be equal, digit by digit. Exit status 1 if they differ. About a
quarter of an hour on two cores.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from reliability import directory, kill_options, print_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from study_kills import tiny_study

COMPARED = (
    "metrics",
    "primary",
    "missing_metrics",
    "trivial_baseline_note",
    "protocol",
    "fingerprint",
    "status",
    "benchmark",
    "model_name",
)


def main() -> int:
    options = kill_options(__doc__, 30)
    options.add_argument("--study", type=Path, help="another study file; the small one if not given")
    arguments = options.parse_args()
    with directory(arguments.work) as work:
        content = yaml.safe_load(arguments.study.read_text(encoding="utf-8")) if arguments.study else None
        problems, kills, places = trial(work, arguments.kills, random.Random(arguments.seed), content)
    where = ", ".join(f"{count} in {kind}" for kind, count in places.items())
    found = "; ".join(problems) or "same table, results and weights"
    passed = print_result(not problems, f"{kills} kills of {arguments.kills} ({where}): {found}")
    return 0 if passed and kills == arguments.kills else 1


def trial(
    work: Path, kills: int, rng: random.Random, content: dict[str, Any] | None = None
) -> tuple[list[str], int, dict[str, int]]:
    """The differences, the number of kills, and type of step → number of kills while such a step ran."""
    whole, killed = (write(work / name, content) for name in ("whole", "killed"))
    began = time.monotonic()
    if start(whole).wait() != 0:
        return [f"the undisturbed study failed, see {whole}/log.txt"], 0, {}
    lasted = time.monotonic() - began
    done, places = 0, dict[str, int]()
    while done < kills:
        runner = start(killed)
        try:
            status = runner.wait(rng.uniform(0.2, lasted / 2))
        except subprocess.TimeoutExpired:
            runner.send_signal(signal.SIGKILL)
            runner.wait()
            done += 1
            for kind in at_work(killed / "out") or ["none"]:
                places[kind] = places.get(kind, 0) + 1
            print(f"\rkill {done} of {kills} ", end="", file=sys.stderr, flush=True)
        else:
            if status != 0:
                return [f"the killed study failed, see {killed}/log.txt"], done, places
            reset_step(killed / "out", rng)
    print(file=sys.stderr)
    if start(killed).wait() != 0:
        return [f"the killed study failed, see {killed}/log.txt"], done, places
    return differences(whole / "out", killed / "out"), done, places


def write(folder: Path, content: dict[str, Any] | None) -> Path:
    folder.mkdir(parents=True)
    study = tiny_study(folder / "out") if content is None else {**content, "output": str(folder / "out")}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start a runner, which waits for the steps that its killed predecessor has left behind."""
    words = [sys.executable, "-m", "benchmarks", "study", "run", str(folder / "study.yaml"), "--wait_for_lock", "true"]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def reset_step(output: Path, rng: random.Random) -> None:
    """Reset a random step and all results, because the study ended before the last kill."""
    step = rng.choice(sorted(path.name for path in (output / "steps").iterdir()))
    (output / "steps" / step / "step.json").unlink()
    shutil.rmtree(output / "results")


def at_work(output: Path) -> list[str]:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("steps/*/step.json")]
    return [record["kind"] for record in records if record["status"] == "running"]


def differences(one: Path, other: Path) -> list[str]:
    """The differences between two outputs of one study, except times and paths."""
    found = [
        f"report/{name} differs"
        for name in ("table.csv", "table.md")
        if (one / "report" / name).read_bytes() != (other / "report" / name).read_bytes()
    ]
    for path in sorted(one.glob("results/[!.]*/[!.]*")):  # hidden ones are locks and cached model outputs
        twin = other / path.relative_to(one)
        if not twin.is_file() or compared_content(path, one) != compared_content(twin, other):
            found.append(f"{path.relative_to(one)} differs")
    for path in sorted(one.glob("encoders/*/*.safetensors")):
        twin = other / path.relative_to(one)
        if hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(twin.read_bytes()).digest():
            found.append(f"{path.relative_to(one)} differs")
    return found


def compared_content(path: Path, root: Path) -> Any:
    """The content of a result or item file, without times and paths."""
    if path.suffix == ".parquet":
        import pandas as pd

        return pd.read_parquet(path).to_csv(index=False)
    text = path.read_text(encoding="utf-8").replace(str(root), "")
    content = json.loads(text)
    return {name: content[name] for name in COMPARED} | {"model": content["model"]["hash"]}


if __name__ == "__main__":
    sys.exit(main())
