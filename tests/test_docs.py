"""The documentation says what is so: its commands parse, its configs build, its rules are used."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from docs_blocks import PROGRAMS, ROOT, Shell, blocks, commands, pages, shell, split, transcript
from docs_rules import RULES, SWAPS, rule_for
from docs_world import write_configs

from benchmarks.study.schema import parse_study
from clips.commandline.parsing import docstring_summary, help_text, list_item_classes, parse_config
from clips.errors import UserError
from clips.text_files import parse_yaml
from clips.typed_data import field_types, from_plain

PAGES = pages()
LANGUAGES = {"sh", "yaml", "csv", "python", "bash", "diff", ""}
"""Of fenced blocks; one without shows what a terminal shows."""
_STAGE = {"data": [{"path": "x"}]}
BASES: dict[str, dict[str, Any]] = {
    "clips train": {"output": "x", "data": {"sources": [{"path": "x"}]}},
    "llava-bridge train": {"output": "x", "encoder": "x", "llm": "x", "align": _STAGE, "instruct": _STAGE},
    "clips-bench run": {"model_name": "x", "output": "x", "encoder": "x"},
    "clips-bench report": {"inputs": ["x"]},
    "a study": {"name": "x", "encoders": {"x": "x"}, "benchmarks": {"x": None}},
}
"""What a fragment of a config lacks to be whole."""
INLINE = re.compile(r"`((?:clips|llava-bridge|clips-bench)\s[^`]+)`")


def shells(page: str) -> Iterator[Shell]:
    for block in blocks(page):
        if block.language == "sh":
            yield from shell(block)
        elif not block.language:
            yield from transcript(block)


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: no test reads {block.language} (known: {sorted(LANGUAGES)})"
        if block.title.endswith(".yaml"):
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text)
    for one in shells(page):
        if (words := one.called) is None:
            check_other(one)
            continue
        if words[1:] == ["--help"]:
            continue
        name, command, arguments = split(words)
        try:
            parse_config(
                command.config_class(),
                arguments,
                prog=f"{words[0]} {name}",
                positional=command.positional,
                rest=command.rest,
            )
        except UserError as error:
            pytest.fail(f"{one}\n{error}")


def check_other(one: Shell) -> None:
    """A script has the flags, and the Makefile the target, that a command names."""
    words = one.words
    if words[0] == "python" and words[1].startswith("scripts/"):
        text = (ROOT / words[1]).read_text(encoding="utf-8")
        for flag in (word for word in words if word.startswith("--")):
            assert f'"{flag}"' in text or flag.strip("-").replace("-", "_") in text, f"{one}: no {flag}"
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), one


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_have_the_flags_that_they_name(page: str):
    prose = re.sub(r"^( *)```.*?^ *```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for found in INLINE.finditer(prose):
        words = found[1].split()
        if words[1] in {"COMMAND", "--help", "--version"}:
            continue
        if not any(name.split()[0] == words[1] for name in commands(words[0])):
            pytest.fail(f"{page}: no command `{found[1]}`")
        if words[1] not in commands(words[0]) and " ".join(words[1:3]) not in commands(words[0]):
            continue  # a family of commands
        _, command, arguments = split(words)
        known = {"help", "config", "print_config", *(name for name, _ in field_types(command.config_class()))}
        for word in arguments:
            flag = word.removeprefix("--").partition("=")[0].replace("-", "_").rstrip(",.;)")
            first = flag.partition(".")[0]
            assert not word.startswith("--") or flag in known or first in known, f"{page}: `{found[1]}` has no {word}"


def configs() -> list[Any]:
    """All but lmms-eval's own tasks, which tests/benchmarks/test_bench_own_tasks.py runs."""
    found = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]
    found = [block for block in found if not block.title.startswith("tasks/")]
    return [pytest.param(block, id=str(block)) for block in found]


@pytest.mark.parametrize("block", configs())
def test_configs_build(block: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = parse_yaml(block.text)
    complaints = []
    for what, base in BASES.items():
        try:
            build(what, merged(base, content))
            return
        except UserError as error:
            complaints.append(f"as {what}: {error}")
    pytest.fail("\n".join([str(block), *complaints]))


def build(what: str, content: dict[str, Any]) -> None:
    if what == "a study":
        parse_study(content)
        return
    program, name = what.split()
    if what == "clips train" and not content.keys() & {"max_steps", "max_samples", "num_epochs", "stages"}:
        content["max_steps"] = 1
    from_plain(commands(program)[name].config_class(), content, what=what)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: merged(base[key], over[key])
        for key in base.keys() & over.keys()
        if isinstance(base[key], dict) and isinstance(over[key], dict)
    }
    return {**base, **over, **both}


def test_every_rule_is_used():
    run = [one for page in PAGES for block in blocks(page) if block.language == "sh" for one in shell(block)]
    used = [rule_for(one) for one in run]
    assert [rule.has for rule in RULES if rule not in used] == []
    for one in run:
        for old, _ in rule_for(one).swap:
            assert old in one.text, f"{one}: has no {old!r} to replace"
    for (page, title), swaps in SWAPS.items():
        (text,) = (block.text for block in blocks(page) if block.title == title)
        assert [old for old, _ in swaps if old not in text] == [], f"{page}: {title}"


def test_a_command_that_is_not_run_is_foreign_or_states_the_reason():
    for page in PAGES:
        for block in blocks(page):
            for one in shell(block) if block.language == "sh" else ():
                assert one.called or rule_for(one).skip or one.words[0] == "export", f"{one}: neither run nor explained"


def test_programs_are_those_that_are_installed():
    scripts = re.search(r"\[project.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert scripts
    assert {line.split(" = ")[0] for line in scripts[1].splitlines()} == set(PROGRAMS)


@pytest.mark.parametrize(("program", "name"), [(program, name) for program in PROGRAMS for name in commands(program)])
def test_help_writes_null_as_yaml_and_flags_do(program: str, name: str):
    command = commands(program)[name]
    config = command.config_class()
    texts = [command.help, help_text(config, f"{program} {name}", command.positional, command.rest)]
    texts += [f"{docstring_summary(kind)}\n{help_text(kind, '', (), None)}" for _, kind in list_item_classes(config)]
    assert not [text for text in texts if re.search(r"\bNone\b", text)]


def test_readmes_table_is_of_the_stored_scores():
    scores = pd.read_csv(ROOT / "docs" / "scores" / "demo.csv").query("study == 'demo'")
    means = scores.groupby(["encoder", "benchmark", "metric"])["value"].mean()
    columns = {
        "retrieval T→I R@1": ("retrieval", "t2i_r1"), "retrieval I→T R@1": ("retrieval", "i2t_r1"),
        "pope accuracy": ("pope", "pope_accuracy"), "gqa exact match": ("gqa", "exact_match"),
        "nocaps\\_val CIDEr": ("nocaps_val", "nocaps_CIDEr"),
    }  # fmt: skip
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").split("\n") if line.startswith("| ")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header[1:] == [*columns]
    models = [row for row in rows if row[0] in {"untrained", "clip", "clips"}]
    assert len(models) == 3
    for name, *cells in models:
        for cell, column in zip(cells, columns.values(), strict=True):
            assert float(re.match(r"\**([\d.]+)", cell)[1]) == pytest.approx(means[name, *column], abs=0.051)
