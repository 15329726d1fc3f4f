"""Run the commands on thousands of invalid inputs and report unexpected errors.

    python scripts/fuzz.py --inputs 10000
    python scripts/fuzz.py --inputs 500 --only configs,studies --seed 7

Inputs and checks are those of tests/fuzzing.py. Failures are counted by the line that raised them, and the report has
the first traceback of each. Exit status 1 if there were any.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_MAX_TRACEBACK = 6000  # characters


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="over all targets, by their shares")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of targets with commas between; all by default")
    parser.add_argument("--report", type=Path, help="a JSON file for counts and failures")
    args = parser.parse_args()
    rooms = [path for path in (ROOT / "tests").iterdir() if path.is_dir()]
    sys.path[:0] = map(str, [ROOT, ROOT / "tests", *rooms])
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HOME": f"{folder}/hf", "XDG_CACHE_HOME": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        os.chdir(folder)
        report = fuzz(Path(folder), args.inputs, args.seed, [name for name in args.only.split(",") if name])
    if args.report:
        args.report.write_text(json.dumps(report, indent=1, ensure_ascii=True) + "\n")
    print(f"{report['inputs']} inputs, {sum(report['failures'].values())} failures at {len(report['failures'])} places")
    for location, count in sorted(report["failures"].items(), key=lambda item: -item[1]):
        print(f"{count:6}  {location}\n        {report['first'][location][-1]}")
    return 1 if report["failures"] else 0


class Tally:
    """Failures by the location that raised them, with the first traceback of each."""

    def __init__(self) -> None:
        self.inputs: collections.Counter[str] = collections.Counter()
        self.failures: collections.Counter[str] = collections.Counter()
        self.first: dict[str, list[str]] = {}

    def counting(
        self, name: str, check: Callable[..., None], world: object, count: Callable[[], None]
    ) -> Callable[..., None]:
        """A wrapper of ``check`` for hypothesis that counts failures instead of raising them."""
        import fuzz_world
        import hypothesis

        def checked(data: object) -> None:
            self.inputs[name] += 1
            count()
            try:
                check(world, data)
            except hypothesis.errors.HypothesisException:
                raise
            except (Exception, SystemExit, fuzz_world.HangError) as error:
                location = f"{name}: {type(error).__name__} {where(error)}"
                self.failures[location] += 1
                text = traceback.format_exc(limit=-6).encode("ascii", "backslashreplace").decode()
                if location not in self.first:
                    self.first[location] = text[-_MAX_TRACEBACK:].splitlines()
                    print(location, self.first[location][-1], sep="\n    ", file=sys.stderr, flush=True)

        return checked


def fuzz(folder: Path, inputs: int, seed: int, only: list[str]) -> dict[str, Any]:
    """Counts of inputs and failures, and the first traceback of each location."""
    import fuzzing
    import hypothesis
    from hypothesis import strategies as st

    from clips.commandline.progress import Progress

    warnings.simplefilter("ignore")
    print(f"{inputs} inputs, made from small files that are written first", file=sys.stderr, flush=True)
    (folder / "world").mkdir()
    world, tally = fuzzing.World(folder / "world"), Tally()
    targets = {name: target for name, target in fuzzing.TARGETS.items() if not only or name in only}
    whole = sum(target.share for target in targets.values())
    for name, target in targets.items():
        began, count = time.monotonic(), max(1, round(inputs * target.share / whole))
        settings = hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        with Progress(name, count, "inputs") as progress:
            check = tally.counting(name, target.check, world, progress.advance)
            hypothesis.seed(seed)(settings(hypothesis.given(data=st.data())(check)))()
        print(f"{name}: {tally.inputs[name]} inputs, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    found = {"by_target": tally.inputs, "failures": tally.failures, "first": tally.first}
    return {"seed": seed, "inputs": sum(tally.inputs.values()), **found}


def where(error: BaseException) -> str:
    """The last frame of an error in the suite's own code; for a failed check of tests/fuzzing.py, its message."""
    if isinstance(error, AssertionError):
        return re.sub(r"\d+", "0", str(error).rpartition("): ")[2])[:90].encode("ascii", "backslashreplace").decode()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(ROOT))]
    within = [frame for frame in own if not frame.filename.startswith(str(ROOT / "tests"))]
    frame = (within or own or frames)[-1]
    return f"at {Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"


if __name__ == "__main__":
    sys.exit(main())
