from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import clips_world
import pytest
from docs_blocks import PROGRAMS, commands
from pydantic import Field

import clips
from clips import cli
from clips.commandline.commands import Command, config_class_of, dispatch
from clips.commandline.parsing import MAX_HELP_LINES, default_of, field_help, parse_config
from clips.errors import UserError
from clips.ranges import NonNegative, NonNegativeFloat, Positive
from clips.typed_data import field_types, to_plain, to_yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemConfig:
    """One item.

    Args:
        path: where it is.
        weight: how much it counts.
    """

    path: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartConfig:
    """A part.

    Args:
        rate: how quick, in 100 % of
            the usual.
        kind: which.
    """

    rate: NonNegativeFloat = 0.1
    kind: Literal["soft", "hard"] = "soft"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Do a job.

    Args:
        place: where to.
        items: what with.
        part: the part.
        steps: how long.
        pair: two numbers.
        names: names of things.
        tools: by name.
        quiet: say nothing.
        seeds: of the dice.
        log_every: steps between lines.
        helpers: who helps.
    """

    place: str
    items: tuple[ItemConfig, ...] = ()
    part: PartConfig = dataclasses.field(default_factory=PartConfig)
    steps: Positive | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    names: dict[str, int] = dataclasses.field(default_factory=dict)
    tools: dict[str, ItemConfig] = dataclasses.field(default_factory=dict)
    quiet: bool = False
    log_every: int = 1
    helpers: tuple[str, ...] = ()
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)] | None = None


received: list[JobConfig] = []


FAILURES: dict[str, BaseException] = {
    "full": OSError(errno.ENOSPC, "No space left on device", "out/file"),
    "full weights": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "many files": RuntimeError("unable to open shared memory object </torch_7>: Too many open files (24)"),
    "more files": OSError(errno.EMFILE, "Too many open files"),
    "closed": PermissionError(errno.EACCES, "Permission denied", "folder/file"),
    "faulty": OSError(errno.EIO, "Input/output error", "folder/file"),
    "broken": OSError(errno.EIO, "Input/output error"),
    "impatient": KeyboardInterrupt(),
    "lines": UserError("one\ntwo"),
}


def do_job(config: JobConfig) -> None:
    received.append(config)
    if config.place in FAILURES:
        raise FAILURES[config.place]
    if config.place.startswith("long"):
        Path(config.place).stat()
    if config.place == "loop":
        Path(config.place).resolve()


@pytest.fixture(autouse=True)
def target(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_job_module")
    module.do_job = do_job  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_job_module", module)
    received.clear()


COMMANDS = {
    "job": Command(help="do it", target="a_job_module:do_job", positional=("place",)),
    "team start": Command(help="start", target="a_job_module:do_job"),
    "crew": Command(help="do it together", target="a_job_module:do_job", positional=("place",), rest="helpers"),
    "team stop": Command(help="stop", target="no_such_module:stop"),
}


def run(*arguments: str) -> int:
    return dispatch("tool", "About.", COMMANDS, arguments)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, run: Callable[..., int] = run) -> str:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.strip()


def test_yaml_flags_and_positionals_make_one_config(tmp_path: Path):
    (tmp_path / "job.yaml").write_text("place: there\npart: {rate: 1e-3}\nitems: [{path: a}, {path: b, weight: 2}]\n")
    assert run("job", "--config", str(tmp_path / "job.yaml"), "--steps", "3", "--part.kind", "hard") == 0
    expected = JobConfig(
        place="there",
        items=(ItemConfig(path="a"), ItemConfig(path="b", weight=2.0)),
        part=PartConfig(rate=0.001, kind="hard"),
        steps=3,
    )
    assert received == [expected]
    assert run("job", "here", "--quiet", "true", "--pair", "[1, 2]", "--local_rank=1") == 0
    assert received[1] == JobConfig(place="here", quiet=True, pair=(1.0, 2.0))
    assert run("job", "--steps", "2", "--part.rate=0.5", "there") == 0
    assert received[2] == JobConfig(place="there", steps=2, part=PartConfig(rate=0.5))
    assert run("team", "start", "--place", "x") == 0


@pytest.mark.parametrize("words", ["there --quiet", "--quiet --steps 3 there", "--quiet=true there"])
def test_a_switch_may_stand_alone(words: str, capsys: pytest.CaptureFixture[str]):
    assert (
        run("job", *words.split()) == run("job", "--quiet", "false", "there") == run("job", "--quiet=false", "x") == 0
    )
    assert [job.quiet for job in received] == [True, False, False]
    assert complaint(capsys, "job", "--quiet", "there").endswith("quiet: expected true or false, got 'there'")


def test_further_words_make_a_list(capsys: pytest.CaptureFixture[str]):
    assert run("crew", "there", "a b", "--steps", "3", "[c].jpg", "1") == 0
    assert received == [JobConfig(place="there", steps=3, helpers=("a b", "[c].jpg", "1"))]
    assert run("crew", "there") == 0
    assert received[1].helpers == ()
    assert run("crew", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: tool crew PLACE HELPERS … [--config FILE]")


@pytest.mark.parametrize("words", [("--helpers", "a*, b c"), ("--helpers=a*,b c",), ("--helpers", '["a*", "b c"]')])
def test_a_list_of_texts_may_be_written_with_commas(words: tuple[str, ...]):
    assert run("job", "there", *words) == 0
    assert received == [JobConfig(place="there", helpers=("a*", "b c"))]
    assert run("job", "there", "--seeds", "3, 4") == run("job", "there", "--seeds=[3, 4]") == 0
    assert [job.seeds for job in received[1:]] == [(3, 4), (3, 4)]


def test_a_config_survives_yaml(tmp_path: Path):
    config = JobConfig(place="é: #", items=(ItemConfig(path="a"),), names={"b": 2}, part=PartConfig(rate=1e-5))
    (tmp_path / "c.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert parse_config(JobConfig, ["--config", str(tmp_path / "c.yaml")], prog="x") == config
    assert to_plain({"path": Path("a"), 1: (2, 3)}) == {"path": "a", "1": [2, 3]}


def test_later_config_files_override_earlier_ones(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("place: there\npart: {rate: 1e-3}\nnames: {a: 1}\nitems: [{path: a}]\n")
    (tmp_path / "b.yaml").write_text("part: {kind: hard}\nnames: {b: 2}\nitems: []\n")
    files = [f"--config={tmp_path / name}" for name in ("a.yaml", "b.yaml")]
    assert run("job", *files, "--part.rate", "2") == 0
    assert received == [JobConfig(place="there", part=PartConfig(rate=2.0, kind="hard"), names={"b": 2})]


def test_print_config_shows_what_would_run_and_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert run("job", "here", "--steps", "4", "--print_config") == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert received == []
    assert run("job", "--config", str(tmp_path / "c.yaml")) == 0
    assert received == [JobConfig(place="here", steps=4)]


def test_help_is_made_from_docstrings(capsys: pytest.CaptureFixture[str]):
    assert run("job", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: tool job PLACE [--config FILE]")
    assert "Do a job." in text
    assert (
        "part: the part. --part.rate how quick, in 100 % of the usual. (a finite number of at least 0; default: 0.1)"
        in text
    )
    assert "--items (an item: --items.help) what with. (a list" in text
    assert "--place where to. (a string; required)" in text
    assert run("--help") == 0
    assert "team stop" in capsys.readouterr().out
    assert run("team", "--help") == 0
    shown = capsys.readouterr().out
    assert "team stop" in shown
    assert "job" not in shown
    assert run("job", "--items.help") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Each item of items is a mapping. One item.",
        "",
        "  path",
        "      where it is. (a string; required)",
        "  weight",
        "      how much it counts. (a number; default: 1.0)",
    ]
    assert run() == 2


@pytest.mark.parametrize("flag", ["--log_every=3", "--log-every=3"])
def test_flags_may_be_written_with_dashes(flag: str):
    assert run("job", "x-y", flag, "--names.a-b", "2") == 0
    assert (received[-1].log_every, received[-1].place, received[-1].names) == (3, "x-y", {"a-b": 2})


def test_flags_of_configs_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.yaml").write_text("tools: {saw: {path: a, weight: 2}}")
    flags = ["--tools.saw.weight", "3", "--tools.axe.path", "b", "--tools.awl", "{path: c}"]
    assert run("job", "x", "--config", str(tmp_path / "c.yaml"), *flags) == 0
    expected = {"saw": ItemConfig(path="a", weight=3.0), "axe": ItemConfig(path="b"), "awl": ItemConfig(path="c")}
    assert received[-1].tools == expected
    line = complaint(capsys, "job", "x", "--tools.saw.pth", "a")
    assert line == "tool job: unknown key 'tools.saw.pth'; did you mean 'tools.saw.path'?"
    assert run("job", "--tools.help") == 0
    assert "where it is. (a string; required)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["jop"], "tool: unknown command 'jop'; did you mean 'job'? (known: job, team start, crew, team stop)"),
        (["team"], "tool: 'team' needs one of: start, stop"),
        (["team", "strat"], "tool: unknown command 'team strat'; did you mean 'team start'?"),
        (["job"], "tool job: missing place"),
        (["job", "x", "--log-evry", "3"], "tool job: unknown key 'log_evry'; did you mean 'log_every'?"),
        (["job", "x", "--part.rat", "3"], "tool job: unknown key 'part.rat'; did you mean 'part.rate'?"),
        (["job", "x", "--steps", "many"], "tool job: steps: expected an integer of at least 1 or null, got 'many'"),
        (["job", "x", "--steps", "1.5"], "tool job: steps: expected an integer of at least 1 or null, got 1.5"),
        (
            ["job", "x", "--part.rate", "quick"],
            "tool job: part.rate: expected a finite number of at least 0, got 'quick'",
        ),
        (["job", "x", "--part.kind", "sfot"], "tool job: part.kind: expected one of soft, hard, got 'sfot'"),
        (["job", "x", "--quiet", "perhaps"], "tool job: quiet: expected true or false, got 'perhaps'"),
        (["job", "x", "--pair", "[1]"], "tool job: pair: expected a list of 2: a number, a number, got [1]"),
        (["job", "x", "--items", "[{pth: 1}]"], "tool job: unknown key 'items[1].pth'; did you mean 'items[1].path'?"),
        (["job", "x", "--items", "[{weight: 1}]"], "tool job: items[1]: missing path"),
        (
            ["job", "x", "--items", "[{path: a}, {path: b, weight: much}]"],
            "tool job: items[2].weight: expected a number, got 'much'",
        ),
        (
            ["job", "x", "--items", "a, b"],
            "tool job: items: expected a list, each item a mapping of path, weight, got 'a, b'; "
            "write '[{path: a}, {path: b}]'",
        ),
        (
            ["job", "x", "--num-gpus", "8"],
            "tool job: unknown key 'num_gpus'; torchrun or deepspeed starts several processes; for a study, set "
            "'resources' in its file",
        ),
        (["job", "x", "--part", "soft"], "tool job: part: expected a mapping of rate, kind, got 'soft'"),
        (["job", "x", "--items", "[a]"], "tool job: items[1]: expected a mapping of path, weight, got 'a'"),
        (["job", "x", "--part.rate", "-1"], "tool job: part.rate: expected a finite number of at least 0, got -1"),
        (["job", "x", "--part.rate", ".nan"], "tool job: part.rate: expected a finite number of at least 0, got nan"),
        (["job", "x", "--steps", "true"], "tool job: steps: expected an integer of at least 1 or null, got True"),
        (["job", "x", "--seeds", "3,-1"], "tool job: seeds[2]: expected an integer of at least 0, got -1"),
        (
            ["job", "x", "--seeds", "[]"],
            "tool job: seeds: expected a list of 1 or more, each item an integer of at least 0, or null, got []",
        ),
        (["job", "x", "--steps", "3", "y"], "tool job: unrecognized argument: y"),
        (["job", "x", "y"], "tool job: unrecognized argument: y"),
        (["job", "x", "y.yaml"], "tool job: --config: y.yaml: no such file"),
        (["job", "x", "--rate", "3"], "tool job: unknown key 'rate'; did you mean 'part.rate'?"),
        (["job", "--config", "no.yaml"], "tool job: --config: no.yaml: no such file"),
        (["job", "full"], "tool: out/file: the disk is full; free some space and run the same command again"),
        (["job", "full weights"], "tool: output: the disk is full; free some space and run the same command again"),
        (["job", "many files"], "tool: too many open files; allow more (ulimit -n 4096) and run the command again"),
        (
            ["job", "more files"],
            "tool: too many open files; allow more (ulimit -n 4096) and run the command again",
        ),
        (["job", "closed"], "tool: folder/file: permission denied"),
        (["job", "long" * 99], f"tool: {('long' * 99)[:250]}: file name too long"),
        (["job", "faulty"], "tool: folder/file: input/output error"),
        (["job", "a\udcff"], "tool: 'a?': expected UTF-8 text"),
        (["job", "lines"], "tool: one two"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str):
    assert complaint(capsys, *arguments) == line


def test_links_in_a_circle_and_named_pipes_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert complaint(capsys, "job", "loop") == f"tool: Symlink loop from '{tmp_path / 'loop'}'"
    os.mkfifo("pipe")
    assert complaint(capsys, "job", "--config", "pipe") == "tool job: --config: pipe: expected a file, got a named pipe"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("place: x\nstesp: 3\n", "unknown key 'stesp'; did you mean 'steps'?"),
        ("place: x\npart:\n  rats: 3\n", "unknown key 'part.rats'; did you mean 'part.rate'?"),
        ("place: x\npart: hard\n", "part: expected a mapping of rate, kind"),
        ("place: x\nsteps: [1]\n", "steps: expected an integer of at least 1 or null, got [1]"),
        ("place: x\nitems: {path: a}\n", "items: expected a list, each item a mapping of path, weight"),
        ("place: x\nitems: [{path: a, weight: heavy}]\n", "items"),
        ("place: x\nnames: {a: b}\n", "names.a: expected an integer, got 'b'"),
        ("place: [x\n", "--config: {file}: not valid YAML"),
        ("- place\n", "--config: {file}: expected YAML"),
        ("place: 3\n", "place: expected a string, got 3"),
        ("place: null\n", "place: expected a string, got null"),
        ("steps: 1\n", "missing place"),
        ("place: 2026-01-01\nsteps: '3'\n", "steps: expected an integer of at least 1 or null, got '3'"),
        ("? [a]\n: 1\n", "--config: {file}: line 1: expected a name as a key"),
        ("place: !!set {a}\n", "expected plain values"),
        ("place: x\nsteps: 1\nsteps: 2\n", "--config: {file}: line 3: the key 'steps' is given twice"),
        ("place: x\npart: {rate: 1, rate: 2}\n", "--config: {file}: line 2: the key 'rate' is given twice"),
        ("place: &a [*a]\n", "--config: {file}: line 1: expected plain values"),
        ("place: \xff\n", "--config: {file}: expected UTF-8 text (invalid start byte at byte 7)"),
    ],
)
def test_a_mistake_in_the_yaml_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, line: str):
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="latin-1")
    assert complaint(capsys, "job", "--config", str(path)).startswith(f"tool job: {line.format(file=path)}")
    assert received == []


def test_torchrun_gets_the_error_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert run("job", "x", "--stepz", "3") == 2
    told = json.loads((tmp_path / "error.json").read_text(encoding="utf-8"))["message"]
    assert told["message"] == "tool job: unknown key 'stepz'; did you mean 'steps'?"
    assert int(told["extraInfo"]["timestamp"]) > 0


def test_torchrun_does_not_start_processes_again_for_a_users_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda *call: ended.append(call))
    for restarts, rank, expected in (("0", "0", 0), ("3", "1", 1), ("3", "0", 0)):  # once, by whichever comes first
        ended.clear()
        (tmp_path / rank).mkdir(exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        assert run("job", "x", "--stepz", "3") == 2
        assert ended == [(os.getppid(), signal.SIGTERM)] * expected


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_the_allocator_of_gpus_is_set_before_torch_unless_the_user_did(name: str | None):
    script = (
        "import os, sys; from clips import cli; sys.argv[1:] = ['--version']; cli.main(); "
        "assert 'torch' not in sys.modules; "
        "print({key: value for key, value in os.environ.items() if key.endswith('ALLOC_CONF')})"
    )
    environment = {key: value for key, value in os.environ.items() if not key.endswith("ALLOC_CONF")}
    environment |= {name: "max_split_size_mb:64"} if name else {}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    expected = {name: "max_split_size_mb:64"} if name else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert done.stdout.splitlines()[-1] == str(expected)


def test_internal_errors_keep_their_traceback_and_interruptions_have_none(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(OSError, match="Input/output"):
        run("job", "broken")
    assert run("job", "impatient") == 130
    assert capsys.readouterr().err == "tool: interrupted\n"


def run_clips(*arguments: str) -> int:
    return dispatch("clips", "", cli.COMMANDS, arguments)


@pytest.mark.parametrize("name", [f"{program} {name}" for program in PROGRAMS for name in commands(program)])
def test_every_command_has_a_documented_config(name: str, capsys: pytest.CaptureFixture[str]):
    program, _, name = name.partition(" ")
    known = commands(program)
    config = known[name].config_class()
    assert config is config_class_of(known[name].function())
    told = dict(field_help(config))
    fields = [field for field, _ in field_types(config) if "[]" not in field]
    assert [field for field in fields if field not in told] == []
    assert dispatch(program, "", known, [*name.split(), "--help", "all"]) == 0
    assert re.match(rf"usage: {program} {name} ([A-Z_]+ (… )?)*\[--config", every := capsys.readouterr().out)
    assert dispatch(program, "", known, [*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") <= MAX_HELP_LINES
    listed = set(re.findall(r"^  --([\w.]+)", shown, re.MULTILINE)) - {"config", "print_config"}
    assert listed <= {*fields} & set(re.findall(r"--([\w.]+)", every))
    required = [name for name in fields if default_of(config, name) is dataclasses.MISSING]
    assert all(
        any(entry.split(".")[0] == name.split(".")[0] for entry in listed) for name in required if "." not in name
    )
    assert f"`{program} {name} --help all`" in shown or listed == {*fields}


EXAMPLES = [
    (program, name, line)
    for program in PROGRAMS
    for name, command in commands(program).items()
    for line in "\n".join(command.examples).replace("\\\n", " ").split("\n")
    if line
]


@pytest.mark.parametrize(("program", "name", "line"), EXAMPLES)
def test_the_examples_of_help_are_configs(program: str, name: str, line: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.partition("    # ")[0])
    if words[0] == "deepspeed":
        words = [program, *words[words.index("--module") + 2 :]]
    assert words[: 1 + len(name.split())] == [program, *name.split()]
    for file in (word for word in words if word.endswith(".yaml")):
        needed = {
            "clips": "{output: x, max_steps: 1, data: {sources: [{path: x}]}}",
            "llava-bridge": "{output: x, encoder: x, llm: x, align: &stage {data: [{path: x}]}, instruct: *stage}",
        }
        Path(file).write_text(needed.get(program, ""))
    command = commands(program)[name]
    settings = {"prog": program, "positional": command.positional, "rest": command.rest}
    assert parse_config(command.config_class(), words[1 + len(name.split()) :], **settings) is not None


def test_the_overview_needs_no_torch():
    code = "import sys, clips.cli\nassert clips.cli.main() == 0\nassert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in shown.stdout for name in cli.COMMANDS)


def test_a_broken_shard_stops_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = clips_world.write_shards(tmp_path / "data", (3, 3))
    shard = data / "shard-00001.tar"
    shard.write_bytes(b"no tar" * 1000)
    (tmp_path / "c.json").write_text(clips_world.config_text(data, tmp_path / "out"))
    told = complaint(capsys, "train", "--config", str(tmp_path / "c.json"), run=run_clips)
    assert "shard-00001.tar: expected a whole" in told
    assert not (tmp_path / "out").exists()


def test_public_names_are_there():
    assert all(callable(getattr(clips, name)) for name in clips.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clips.nothing  # noqa: B018


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_changes_no_status(closed: str) -> None:
    words = shlex.join([sys.executable, "-m", "clips", "trian"])
    assert subprocess.run(f"{words} {closed}", shell=True, capture_output=True).returncode == 2
