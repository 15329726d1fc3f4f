"""Caption a dataset by Ray: each task does its part of the shards, on its own GPUs or with a server's model.

    python scripts/ray/recaption.py 64 --gpus 1 --config recaption.yaml
    python scripts/ray/recaption.py 64 --config recaption.yaml --endpoint '[http://host:8000/v1]'

The first number is that of the tasks; arguments that are not listed here are those of `clips recaption`. Ray starts a
task that fails, or whose machine is lost, again, and it resumes with its missing shards; the last one to finish
completes the dataset. All machines need the output's directory, and clips installed. RAY_ADDRESS names a cluster; tried
on one machine only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import ray


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("tasks", type=int)
    parser.add_argument("--cpus", type=float, default=2, help="of each task")
    parser.add_argument("--gpus", type=float, default=0, help="of each task")
    parser.add_argument("--max_retries", type=int, default=20, help="of each task")
    own, words = parser.parse_known_args()

    @ray.remote(num_cpus=own.cpus, num_gpus=own.gpus, max_retries=own.max_retries, retry_exceptions=True)
    def recaption(shard: str) -> None:
        subprocess.run([sys.executable, "-m", "clips", "recaption", *words, "--shard", shard], check=True)

    ray.init()
    started = [recaption.remote(f"{number}/{own.tasks}") for number in range(1, own.tasks + 1)]
    try:
        ray.get(started)
    except ray.exceptions.RayTaskError as error:
        print(f"recaption: {error.cause}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
