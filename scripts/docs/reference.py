"""Generated pages of the documentation: a hook of mkdocs (see mkdocs.yml).

A page for each command, from the dataclass that is its config; the benchmarks, from their entries; pages of the
Python interface, from docstrings; and CONTRIBUTING.md and CHANGELOG.md, which are outside docs/.
"""

from __future__ import annotations

import dataclasses
import html
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from benchmarks.tasks.listing import details
from benchmarks.tasks.registry import all_benchmarks
from clips.commandline.commands import Command
from clips.commandline.parsing import field_help, item_variants, list_item_classes
from clips.typed_data import describe_type, field_types, to_plain

ROOT = Path(__file__).parents[2]
PROGRAMS = {"clips": "clips.cli", "llava-bridge": "llava_bridge.cli", "clips-bench": "benchmarks.cli"}
INTERFACE = {
    "clips": (
        "encoder", "data.images", "errors", "method.recipes", "model.losses", "method.caption_strategies",
        "model.tokenizer", "core.artifact", "data.formats.dataset_format",
    ),
    "llava_bridge": (
        "inference.generate", "inference.loglikelihood", "encoders", "encoders.encoder", "projectors", "chat_templates",
    ),
    "benchmarks": (
        "tasks.run_benchmarks", "tasks.registry", "tasks.evaluation",
        "results.results", "results.protocol", "results.statistics",
    ),
}  # fmt: skip
"""Package → its public modules: the interface for scripts and for extensions."""
OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append the generated pages to the navigation."""
    commands = [{program: [{name: command_page(program, name)} for name in known(program)]} for program in PROGRAMS]
    interface = [{package: f"reference/{package}.md"} for package in INTERFACE]
    config.nav = [
        *(config.nav or []),
        {
            "Reference": [
                "reference/index.md",
                {"Benchmarks": "reference/benchmarks.md"},
                *commands,
                {"Python": interface},
            ]
        },
        {
            "The project": [
                {"Contributing": "contributing.md"},
                {"Architecture": "architecture.md"},
                {"Changes": "changelog.md"},
            ]
        },
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the generated pages, in memory."""
    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    return files


_summaries: dict[str, tuple[str, str]] = {}  # URL of a page → its title and first paragraph


def on_page_markdown(text: str, *, page: Page, **_: Any) -> str:
    """Point links to files outside docs/, which are right on GitHub, to their pages."""
    first = text.partition("\n")[2].strip().partition("\n\n")[0]  # paragraph below the heading
    summary = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", first.partition("\n```")[0])
    _summaries[page.url] = str(page.title or page.url), " ".join(summary.split())
    for path, source in OUTSIDE.items():
        text = text.replace(f"../{source}", path)
    return text


def on_post_build(config: MkDocsConfig) -> None:
    """Write ``llms.txt`` (https://llmstxt.org): each page with what it is about."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description or config.site_name}", ""]
    for heading, is_reference in (("Docs", False), ("Optional", True)):
        lines += [f"## {heading}", ""]
        for url, (title, summary) in _summaries.items():
            if url.startswith("reference/") == is_reference:
                lines.append(f"- [{title}]({url})" + (f": {summary}" if summary else ""))
        lines.append("")
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines), encoding="utf-8")


def pages() -> Iterator[tuple[str, str]]:
    """Path below docs/ and Markdown text of each generated page."""
    yield "reference/index.md", overview()
    for program in PROGRAMS:
        for name, command in known(program).items():
            yield command_page(program, name), "\n".join(command_lines(program, name, command)) + "\n"
    yield "reference/benchmarks.md", "\n".join(benchmark_lines()) + "\n"
    for package, modules in INTERFACE.items():
        listed = "\n\n".join(f"::: {package}.{module}" for module in modules)
        yield f"reference/{package}.md", f"# Package `{package}`\n{imported(package)}\n\n{listed}\n"
    for path, source in OUTSIDE.items():
        yield path, (ROOT / source).read_text(encoding="utf-8")


def known(program: str) -> dict[str, Command]:
    """Name → command of a program."""
    commands: dict[str, Command] = importlib.import_module(PROGRAMS[program]).COMMANDS
    return commands


def command_page(program: str, name: str) -> str:
    """Path of the page of a command."""
    return f"reference/{program}-{name.replace(' ', '-')}.md"


def overview() -> str:
    """The page that lists all commands."""
    lines = [
        "# Commands",
        "Each command is a function of one config. `--config FILE` reads it from YAML, flags with the same dotted",
        "names override it, `--help` explains the fields, `--print_config` prints the complete config.",
        "These pages are generated from the same docstrings as `--help`. In YAML, dotted fields are nested:",
        "`--optimizer.learning_rate 1e-3` is `optimizer: {learning_rate: 1e-3}`.",
        "",
    ]
    for program in PROGRAMS:
        lines += [f"## {program}", "", "| command | |", "|---|---|"]
        for name, command in known(program).items():
            lines.append(f"| [`{program} {name}`]({Path(command_page(program, name)).name}) | {command.help} |")
        lines.append("")
    return "\n".join(lines)


def benchmark_lines() -> Iterator[str]:
    """The page of the benchmarks: what `clips-bench list NAME` prints of each besides its settings."""
    yield "# Benchmarks"
    for name, entry in all_benchmarks().items():
        if described := details(name, entry):
            yield f"## {name}\n{markdown(entry.about)}\n"
            yield from (f"- *{heading}*: {markdown(text)}" for heading, text in described.items())


def command_lines(program: str, name: str, command: Command) -> Iterator[str]:
    """The page of one command: description, usage, fields with defaults."""
    config = command.config_class()
    words = "".join(f" {word.upper()}" for word in command.positional)
    words += f" {command.rest.upper()} …" if command.rest else ""
    yield f"# {program} {name}"
    yield markdown((inspect.getdoc(config) or "").partition("\nArgs:")[0])
    yield f"\n```\n{program} {name}{words} [--config FILE] [--FIELD VALUE ...]\n```"
    kinds, texts, defaults = dict(field_types(config)), dict(field_help(config)), dict(default_values(config))
    top = [field for field in kinds if "[]" not in field]
    yield from table(top, kinds, texts, defaults)
    lists: dict[type, list[str]] = {}
    for listed, kind in list_item_classes(config):
        lists.setdefault(kind, []).append(f"`{listed}`")
    for kind, names in lists.items():
        texts, defaults = dict(field_help(kind)), dict(default_values(kind))
        yield f"\n## An item of {', '.join(names)}"
        yield markdown((inspect.getdoc(kind) or "").partition("\nArgs:")[0]) + "\n"
        yield from table([field for field, _ in field_types(kind)], dict(field_types(kind)), texts, defaults)
        for heading, variant, parent, inherited in item_variants(kind):
            yield f"\n### {heading}" + (f", in addition to those of {inherited}" if inherited else "")
            own = [field for field, _ in field_types(variant) if field not in dict(field_types(parent))]
            texts, defaults = dict(field_help(variant)), dict(default_values(variant))
            yield from table(own, dict(field_types(variant)), texts, defaults)


def table(fields: list[str], kinds: dict[str, Any], texts: dict[str, str], defaults: dict[str, str]) -> Iterator[str]:
    """A table of the fields that have values, without the configs that contain them."""
    yield "\n| field | expected | default | |\n|---|---|---|---|"
    for field in fields:
        if not any(other.startswith(f"{field}.") for other in kinds):
            description = markdown(texts.get(field, "")).replace("|", "\\|")
            yield f"| `{field}` | {cell(describe_type(kinds[field]))} | {defaults.get(field, '')} | {description} |"


def cell(text: str) -> str:
    """A text escaped for a table cell."""
    return html.escape(text, quote=False).replace("|", "\\|")


def markdown(text: str) -> str:
    """A docstring as Markdown: literals and roles as code, all other text escaped."""
    text = re.sub(r"``(.+?)``", r"`\1`", re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text))
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else html.escape(part, quote=False).replace("*", "\\*") for part in parts
    )


def default_values(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and defaults of a config class, "required" for a field without default; or values of a config."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, field.default
        if not isinstance(config, type):
            value = getattr(config, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is dataclasses.MISSING:
            yield name, "required"
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from default_values(value, f"{name}.")
        else:
            yield name, shown(value)


def shown(value: Any) -> str:
    """A default as YAML."""
    return f"`{json.dumps(to_plain(value), ensure_ascii=False)}`".replace("|", "\\|")


def imported(package: str) -> str:
    """A package's docstring, and the names that it exports."""
    module = importlib.import_module(package)
    names = ", ".join(f"`{package}.{name}`" for name in getattr(module, "__all__", ()))
    return f"{markdown(inspect.getdoc(module) or '')}" + (
        f"\n\nImported from the package itself: {names}." if names else ""
    )
