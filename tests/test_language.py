"""The suite has one language: words with a standard term stay out of docs, help texts, reports and names."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_blocks import PROGRAMS, ROOT, commands

from clips.commandline.parsing import docstring_summary, help_text, list_item_classes

WORDS = {
    r"pictures?|pictured": "image (figure or screenshot of a page)",
    r"learnt|burnt|spelt": "learned; supervised; trainable",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"reckon(?:s|ed|ing)?": "assume, estimate",
    r"heed(?:s|ed|ing)?": "use, respect",
    r"befalls?|befell|befallen": "happen to",
    r"nobody|somebody|whoever|whomever": "the user, the caller, no process",
    r"lest": "so that … not",
    r"anew": "again, from scratch",
    r"afar": "remote",
    r"told": "reported, printed; distinguished",
    r"likeliest": "most probable",
    r"commonest": "most frequent, majority",
    r"lopsided": "asymmetric, skewed",
    r"unlike": "different, non-matching",
    r"beside": "next to, compared with, in addition to",
    r"seldom": "rarely",
    r"dearer": "more expensive",
    r"footguns?": "pitfall",
    r"refus(?:e|es|ed|ing|als?)": "reject, raise an error; unsupported",
    r"(?:keep|keeps|kept|hold|holds|held)[ _]back": "hold out, held out",
    r"go(?:es|ing|ne)?[ _]on|went[ _]on": "resume, continue",
    r"(?:stands?|stood|standing)[ _]still": "hang, stall",
    r"laid[ _]over": "override, merged over",
    r"once[ _]and[ _]for[ _]all|for[ _]ever": "once; forever",
    r"by[ _]lot|tossing[ _]coins": "chosen by hash; at random",
    r"made[ _]elsewhere": "external, precomputed",
    r"so[ _]many": "N, this number of",
    r"data[ _]sets?": "dataset",
    r"whole[ _]numbers?": "integer",
    r"whatever": "any, regardless of",
    r"\w*colour\w*|\w*behaviour\w*|\w*neighbour\w*|favour\w*|honour\w*": "American spelling: -or",
    r"grey\w*": "gray",
    r"centres?|centred|metres?": "American spelling: -er",
    r"licences?|artefacts?|catalogues?|modell(?:ed|ing)|labell(?:ed|ing)": "American spelling",
    r"(?:un|re|de)?(?:normal|optim|quant|token|initial|serial|summar|recogn|util|organ|minim|maxim)is(?:e[sd]?|ing|ations?)":
        "American spelling: -ize",
}  # fmt: skip
"""Words that are wrong in nearly every use, as patterns → the standard term."""
_PATTERN = re.compile("|".join(rf"(?P<w{number}>\b(?:{word})\b)" for number, word in enumerate(WORDS)), re.IGNORECASE)
_URL = re.compile(r"https?://\S+")
ALLOWED = {
    ("clips recaption", "picture"): "the default prompt, on which captions depend",
}
"""Place and word (in lower case) → why the word is right there."""
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "mkdocs.yml", "Makefile"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
TEXTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "scripts/demo/*.yaml", "benchmarks/report/*.yaml", "benchmarks/**/*.jinja", "clips/cards/*",
        "scripts/studies/*.yaml", "scripts/configs/**/*.yaml", "scripts/slurm/*", "scripts/deepspeed/hostfile*",
    )
    for path in ROOT.glob(pattern)
    if path.is_file()
)  # fmt: skip
HELP = [(program, name) for program in PROGRAMS for name in commands(program)]
PACKAGES = ("clips", "llava_bridge", "benchmarks")


def wrong_words(place: str, text: str) -> list[str]:
    """One line for each word of ``text`` that has a standard term, unless it is allowed at this place."""
    lines = []
    for number, line in enumerate(_URL.sub("", text).splitlines(), start=1):
        for match in _PATTERN.finditer(line):
            if (place, match[0].lower()) not in ALLOWED:
                standard = list(WORDS.values())[int(str(match.lastgroup)[1:])]
                lines.append(f"{place}:{number}: '{match[0]}', write: {standard}")
    return lines


def spaced(name: str) -> str:
    """The words of an identifier: ``PatchEmbedding`` and ``patch_embedding`` → ``patch embedding``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name)


def public_names(path: Path) -> Iterator[str]:
    """The module's name, its public top-level names, and the public fields and methods of its classes."""
    yield path.stem
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        yield from _bound(node)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                yield from (f"{node.name}.{name}" for name in _bound(inner))


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize("page", [*PAGES, *TEXTS])
def test_pages_configs_and_templates_use_standard_terms(page: str):
    assert wrong_words(page, (ROOT / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("program", "name"), HELP)
def test_help_uses_standard_terms(program: str, name: str):
    command = commands(program)[name]
    config = command.config_class()
    texts = [command.help, help_text(config, f"{program} {name}", command.positional, command.rest)]
    texts += [f"{docstring_summary(kind)}\n{help_text(kind, '', (), None)}" for _, kind in list_item_classes(config)]
    assert not [text for text in texts if re.search(r"\bNone\b", text)], "YAML and flags take null"
    about = inspect.getmodule(importlib.import_module(PROGRAMS[program]))
    assert about
    wrong = wrong_words(f"{program} {name}", "\n".join([*texts, about.__doc__ or ""]))
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_symbols_and_fields_have_standard_names(package: str):
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for name in public_names(path):
            if not re.search(r"(?:^|\.)_", name):
                wrong += wrong_words(f"{path.relative_to(ROOT)}: {name}", spaced(name))
    assert wrong == []


def test_tests_have_standard_names():
    wrong = []
    for path in sorted((ROOT / "tests").glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        wrong += wrong_words(path.name, "\n".join(map(spaced, [path.stem, *names])))
    assert wrong == []


def test_the_allowed_words_are_still_there():
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in [*PAGES, *TEXTS]}
    assert [key for key in ALLOWED if key[0] in texts and key[1] not in texts[key[0]].lower()] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Pictures that nobody told us of", 3),
        ("a run goes on; normalised colours; data sets", 4),
        ("picturesque; an image is normalized; https://example.com/pictures; unlikely; besides", 0),
        ("\n".join(map(spaced, ["keep_back", "PictureHash", "data_set", "dataset"])), 3),
    ],
)
def test_words_are_found_in_any_case_and_form(text: str, count: int):
    assert len(wrong_words("x", text)) == count
