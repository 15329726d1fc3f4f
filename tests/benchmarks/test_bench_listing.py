"""`clips-bench list` and the settings of each benchmark: which it takes, what is said of a wrong one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter

from benchmarks.tasks.encoders.retrieval import RetrievalConfig
from benchmarks.tasks.listing import ListConfig, run_list
from benchmarks.tasks.registry import all_benchmarks, configure, settings_by_kind
from benchmarks.tasks.run_benchmarks import RunConfig
from clips.errors import UserError
from clips.typed_data import from_plain, to_plain

RUN = {"model_name": "m", "output": "results", "encoder": "e"}


def test_each_benchmark_has_items_size_license_and_settings(capsys):
    run_list(ListConfig())
    shown = capsys.readouterr().out
    lines = {line.split("  ")[0] or line.split()[0]: line for line in shown.splitlines() if line}
    assert all_benchmarks().keys() <= lines.keys()
    assert lines["mmvet"].split() == [
        "mmvet", "llava", "218", "67", "MB", "CC", "BY-NC", "4.0", *all_benchmarks()["mmvet"].about.split()
    ]  # fmt: skip
    assert lines["sugarcrepe_mcq"].split()[1:4] == ["llava", "7,511", "MIT"]
    assert "5,000  6.6 GB  CC BY 4.0 (captions)" in lines["COCO"]
    assert lines["choice"].split()[1:3] == ["encoder", "yours"]
    assert 'linear_probe: split="test"; train_split="train"\n' in shown
    run_list(ListConfig(benchmark="long_retrieval"))
    shown = capsys.readouterr().out
    assert "[8, 16, 32, 64, 128, 256]" in shown
    assert "train_split" not in shown


@pytest.mark.parametrize(("words", "shown"), [(["list"], "9,000"), (["run", "--benchmarks.help"], "of long_retrieval")])
def test_the_list_and_the_help_import_no_model_library(words, shown):
    code = "import sys; sys.modules.update(torch=None, transformers=None, pandas=None, lmms_eval=None); "
    code += "from benchmarks.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout


def test_each_mllm_benchmark_states_prompt_scorer_and_source(capsys):
    listed = {name: entry.details for name, entry in all_benchmarks().items() if entry.benchmark_type == "mllm"}
    assert len(listed) > 20
    assert [name for name, details in listed.items() if not {"prompt", "scorer", "source"} <= details.keys()] == []
    run_list(ListConfig(benchmark="pope"))
    shown = capsys.readouterr().out
    assert "  scorer: the full answer in lower case is yes or no; accuracy and F1 over all questions\n" in shown
    assert 'prompt: question and "Answer the question using a single word or phrase."\n' in shown
    run_list(ListConfig(benchmark="long_retrieval"))
    assert "  DOCCI: 136 words each, by people; arXiv 2404.19753\n" in capsys.readouterr().out


def test_a_benchmark_of_a_run_has_the_class_of_its_settings():
    run = from_plain(RunConfig, {**RUN, "benchmarks": [{"name": "mine", "task": "retrieval", "data": "d", "limit": 3}]})
    assert run.benchmarks == [RetrievalConfig(name="mine", task="retrieval", data="d", limit=3)]
    assert from_plain(RunConfig, to_plain(run)) == run
    assert "limit" in TypeAdapter(RunConfig).json_schema()["$defs"]["BenchmarkConfig"]["properties"]


def test_settings_of_other_benchmarks_are_ignored_at_their_default_only():
    """As --print_config wrote them when all benchmarks had one class."""
    every = {
        field.name: to_plain(field.default)
        for kind in settings_by_kind().values()
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }
    assert len(every) > 20
    assert configure(**every | {"name": "pope", "data": "d"}) == configure(name="pope", data="d")
    with pytest.raises(UserError, match="unknown key 'split'"):
        configure(**every | {"name": "pope", "data": "d", "split": "val"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "pop"}, r"^benchmarks: unknown benchmark 'pop'; did you mean 'pope'\?"),
        ({"name": 3}, r"^benchmarks: expected 'name', a benchmark or the name of its column"),
        ({"name": "../x", "task": "gqa"}, r"^benchmarks\.\.\./x: name: expected up to 200 letters"),
        ({"max_new_tokens": 3}, r"unknown key 'max_new_tokens' \('retrieval' takes name, data, task, limit, split, "),
        ({"langage": "de"}, r"unknown key 'langage'; did you mean 'language'\? \('retrieval' takes"),
        ({"limit": "few"}, r"^benchmarks\.retrieval: limit: expected an integer of at least 1 or null, got 'few'$"),
        (
            {"name": "x", "task": "long_retrieval", "word_limits": ()},
            r"^benchmarks\.x: word_limits: expected increasing",
        ),
        ({"name": "long_retrieval", "word_limits": (8, 4)}, "word_limits: expected increasing numbers"),
        ({"name": "long_retrieval", "word_limits": (4, 4)}, "word_limits: expected increasing numbers"),
        ({"name": "long_retrieval", "word_limits": (0, 4)}, r"word_limits\[1\]: expected an integer of at least 1"),
        (
            {"name": "long_retrieval", "word_limits": (4, "x")},
            r"word_limits\[2\]: expected an integer of at least 1, got 'x'",
        ),
        ({"name": "multilingual_retrieval"}, "missing languages"),
        ({"name": "multilingual_retrieval", "languages": ()}, "languages: expected at least one"),
        ({"name": "multilingual_retrieval", "languages": ("de", "de")}, "languages: expected .*different"),
        ({"name": "classification", "templates": "simpel"}, "templates, .* 'simpel'; did you mean 'simple'"),
        ({"name": "classification", "templates": ("a photo",)}, r"expected \{\} where the class goes, got 'a photo'"),
        ({"name": "classification", "templates": ()}, "templates: expected at least one string"),
        ({"name": "linear_probe", "split": "train"}, "train_split: expected a different one than 'split'"),
        ({"name": "choice_mcq", "prompt": "A {a} or B"}, r"prompt: expected \{a\} and \{b\} where the captions go"),
        ({"name": "choice_likelihood", "likelihood_score": "max"}, "likelihood_score: expected one of sum, mean, mut"),
        ({"name": "choice", "blind": ("blank",)}, r"unknown key 'blind' \('choice' takes"),
        ({"name": "pope", "blind": ("black",)}, r"blind\[1\]: expected one of blank, shuffled, got 'black'"),
        ({"name": "pope", "blind": ("blank", "blank")}, "blind: expected different kinds"),
        ({"name": "pope", "scale": 2.0}, "unknown key 'scale'"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        configure(**{"name": "retrieval", "data": "d"} | settings)
