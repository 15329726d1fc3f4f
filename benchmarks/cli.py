"""The ``clips-bench`` command."""

from __future__ import annotations

import sys

from clips.commandline import Command, run_commands

COMMANDS = {
    "run": Command(help="evaluate one model on a list of benchmarks", target="benchmarks.run:run"),
    "list": Command(help="the benchmarks that are known by name", target="benchmarks.run:list_benchmarks"),
    "prepare": Command(
        help="write local data in the layout that lmms-eval's tasks read",
        target="benchmarks.prepare:prepare",
        positional=("what",),
    ),
}


def main() -> int:
    """Run the command that the command line names and return its exit status."""
    return run_commands("clips-bench", "Evaluate encoders and LLaVAs, and compare them in one report.", COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
