"""``clips-bench download`` from a hub on this machine, and evaluation where there is no network at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bench_world as world
import pytest
from hub_server import COMMIT

from benchmarks.tasks.mllm.lmms_benchmarks import data_hash
from benchmarks.tasks.registry import configure
from clips.errors import UserError

POPE = f"{world.HUB}/POPE/data/test-00000-of-00001.parquet"


@dataclass
class Here:
    """Where the hub's files lie, and where those fetched go."""

    hub: Path
    to: Path
    sent: Path
    url: str

    def fetch(self, tasks: str, *more: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own: huggingface_hub reads its settings when it is imported."""
        environment = os.environ | {"HF_ENDPOINT": url or self.url, "HF_HOME": str(self.to.parent / "home")}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5"}
        command = [sys.executable, "-m", "benchmarks", "download", tasks, "--output", str(self.to), *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def files(self) -> list[str]:
        """What has been fetched."""
        paths = (path.relative_to(self.to) for path in self.to.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))

    def take(self) -> list[str]:
        """What the hub sent since the last call, a line each: name and first byte."""
        lines = self.sent.read_text().splitlines() if self.sent.exists() else []
        self.sent.unlink(missing_ok=True)
        return lines


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    hub = world.write_hub(tmp_path / "hub", 2)
    (hub / world.HUB / "GQA/train_all_images").mkdir()
    (hub / world.HUB / "GQA/train_all_images/train.parquet").write_bytes(b"a hundred gigabytes")
    sent = tmp_path / "sent"
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py")), str(hub), str(sent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield Here(hub, tmp_path / "data", sent, server.stdout.readline().strip())
        server.terminate()


def test_only_the_data_of_the_tasks_are_downloaded(here):
    done = here.fetch("pope,gqa")
    assert done.returncode == 0, done.stderr
    parts = [f"testdev_balanced_{part}/testdev-00000-of-00001.parquet" for part in ("images", "instructions")]
    gqa = [f"{world.HUB}/GQA/{part}" for part in parts]
    assert here.files() == sorted(["download_record.json", POPE, f"{world.HUB}/GQA/README.md", *gqa])
    record = json.loads((here.to / "download_record.json").read_text())["datasets"]
    assert record[f"{world.HUB}/POPE"]["revision"] == COMMIT
    for name in here.files()[1:]:
        assert (here.to / name).read_bytes() == (here.hub / name).read_bytes()
    here.take()
    again = here.fetch("pope,gqa")
    assert (again.returncode, again.stderr.count("0 to download")) == (0, 2)
    assert not [line for line in here.take() if ".parquet" in line]


def test_a_damaged_file_is_named_and_downloaded_again(here):
    assert here.fetch("pope").returncode == 0
    config = configure(name="pope", data=str(here.to))
    whole = data_hash(config)
    content = (here.to / POPE).read_bytes()
    (here.to / POPE).write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match=rf"{POPE}: changed since the download \(its hash differs\); run `clips-b"):
        data_hash(config)
    (here.to / POPE).unlink()
    with pytest.raises(UserError, match=rf"{POPE}: missing; run `clips-bench download` again"):
        data_hash(config)
    (here.to / POPE).write_bytes(content[:-1] + b"x")
    assert here.fetch("pope").returncode == 0
    assert data_hash(config) == whole


def test_an_update_removes_what_the_former_revision_alone_had(here):
    """Before: the questions of both revisions were evaluated."""
    assert here.fetch("pope").returncode == 0
    record = json.loads((here.to / "download_record.json").read_text())
    pope, former = record["datasets"][f"{world.HUB}/POPE"], "data/test-00000-of-00002.parquet"
    (here.to / POPE).with_name("test-00000-of-00002.parquet").write_bytes((here.to / POPE).read_bytes())
    pope["files"][former] = pope["files"]["data/test-00000-of-00001.parquet"]
    pope["revision"] = "b" * 40
    (here.to / "download_record.json").write_text(json.dumps(record))
    assert here.fetch("pope", "--update", "true").returncode == 0
    assert here.files() == ["download_record.json", POPE]
    record = json.loads((here.to / "download_record.json").read_text())
    assert former not in record["datasets"][f"{world.HUB}/POPE"]["files"]


def test_an_update_keeps_what_another_task_has_of_the_dataset(here):
    assert here.fetch("gqa").returncode == 0
    record = json.loads((here.to / "download_record.json").read_text())
    gqa, other = record["datasets"][f"{world.HUB}/GQA"], "train_all_images/train.parquet"
    (here.to / world.HUB / "GQA/train_all_images").mkdir()
    (here.to / world.HUB / "GQA" / other).write_bytes(b"downloaded for hours")
    gqa["files"][other], gqa["revision"] = "0" * 64, "b" * 40
    (here.to / "download_record.json").write_text(json.dumps(record))
    assert here.fetch("gqa", "--update", "true").returncode == 0
    assert (here.to / world.HUB / "GQA" / other).read_bytes() == b"downloaded for hours"


def test_an_interrupted_download_resumes(here):
    here.to.parent.mkdir(exist_ok=True)
    (here.hub / "cut").write_text(f"{POPE} 500\n")
    first = here.fetch("pope")
    if first.returncode:  # huggingface_hub may have resumed by itself
        assert "the same command goes on" in first.stderr
        assert here.fetch("pope").returncode == 0
    parts = [int(line.split()[1]) for line in here.take() if line.startswith(POPE)]
    assert parts[0] == 0
    assert len(parts) >= 2
    assert (here.to / POPE).read_bytes() == (here.hub / POPE).read_bytes()


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("poppe", "unknown benchmark 'poppe'; did you mean 'pope'"),
        ("chartqa,mmvet", f"{world.HUB}/MMVet: cannot be downloaded from the Hub"),
        ("pope", f"{world.HUB}/POPE: cannot be downloaded from the Hub"),
    ],
)
def test_data_that_cannot_be_downloaded(here, tasks, said):
    done = here.fetch(tasks, url="http://127.0.0.1:9" if tasks == "pope" else None)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert said in last
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_fetched_data_are_evaluated_without_a_network(here, tmp_path):
    """In a network namespace without any interface, not even the loopback one is up."""
    alone = ["unshare", "-rn"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not permitted here")
    assert here.fetch("gqa,mmvet,pope").returncode == 2  # the hub has no MM-Vet; what came before it stays
    assert here.fetch("pope").returncode == 0
    llava = world.write_llava(tmp_path / "llava")
    benchmarks = [{"name": name, "data": str(here.to), "max_new_tokens": 3} for name in ("gqa", "pope")]
    command = [sys.executable, "-m", "benchmarks", "run", "--model_name", "row", "--output", str(tmp_path / "results")]
    command += ["--llava", str(llava), "--benchmarks", json.dumps(benchmarks)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment["HF_HOME"] = str(tmp_path / "empty")
    done = subprocess.run([*alone, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("gqa", "pope"):
        assert json.loads((tmp_path / f"results/row/{name}.json").read_text())["status"] == "ok"
