"""Check the configs and input files of a study's steps before the first one starts; no config class imports torch."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.formatting import join_or_count
from benchmarks.study.launch import PYTHON_SCRIPT, find_command
from benchmarks.study.schema import Study
from benchmarks.study.state import Step
from benchmarks.study.step_kinds import STEP_KINDS, kind_of
from benchmarks.study.steps import StudyPlan
from benchmarks.study.study_record import NO_LLAVA
from clips.data.formats.dataset_format import ALL, WHOLE
from clips.data.remote_files import expand_brace_ranges
from clips.errors import UserError, unknown_name_error
from clips.model_refs import TIMM_PREFIX
from clips.safe_text import log_info
from clips.typed_data import from_plain, to_plain

if TYPE_CHECKING:
    from benchmarks.tasks.registry import BenchmarkConfig
    from clips.data.formats.dataset_format import DatasetSpec
    from clips.data.sources import Source, SourceConfig


@functools.cache  # it may read a data set
def plan_warnings(plan: StudyPlan) -> tuple[str, ...]:
    """What a study does not do, or should not, although it can run: a line each."""
    lines = []
    if plan.study.llms and not any(step.kind == "llava" for step in plan.steps):
        lines.append("llms: no LLaVA is trained, because no benchmark evaluates one")
    if any(NO_LLAVA in row.not_applicable.values() for row in plan.rows):
        lines.append("llms: there are none, so benchmarks of LLaVAs evaluate 'existing_llavas' only")
    if idle := [row.name for row in plan.rows if not row.cells]:
        lines.append(f"benchmarks: none evaluates {join_or_count(idle, 'models')}")
    sources = [
        (step.name, os.path.realpath(source["path"]), str(source.get("split", "train")))
        for step in plan.steps
        if STEP_KINDS[step.kind].trains
        for source in _data_sources(step.config)
    ]
    tested = {
        benchmark["name"]: benchmark
        for step in plan.steps
        if STEP_KINDS[step.kind].evaluates
        for benchmark in step.config["benchmarks"]
    }
    for name, benchmark in tested.items():
        data, splits = os.path.realpath(benchmark["data"]), {*str(benchmark.get("split", "test")).split("+")}
        inside = [source for source in sources if Path(source[1]).is_relative_to(data)]
        trained = [
            step
            for step, path, split in inside
            if path == data and (splits & {*split.split("+")} or ALL in {*splits, *split.split("+")})
        ]
        if not trained and inside and _has_no_splits(benchmark):
            trained = [step for step, _, _ in inside]
        if trained:
            steps = join_or_count([*dict.fromkeys(trained)], "steps")
            lines.append(f"benchmarks.{name}: tests on {benchmark['data']}, training data of {steps}")
    return tuple(lines)


def _data_sources(config: Any) -> Iterator[Mapping[str, Any]]:
    """The data of a training: each mapping with a path, except what it validates on."""
    if isinstance(config, Mapping):
        if isinstance(config.get("path"), str):
            yield config
        for key, value in config.items():
            yield from _data_sources(value) if key != "validation" else ()
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _data_sources(value)


def _has_no_splits(benchmark: Mapping[str, Any]) -> bool:
    """Whether images with captions are read whole, whatever the split; False if they are missing or something else."""
    from clips.data.formats import DatasetSpec, read_dataset

    given = {name: benchmark[name] for name in ("format", "split", "subset") if name in benchmark}
    try:
        return (
            read_dataset(DatasetSpec(path=benchmark["data"], **{"split": "test", **given}), "captions").split == WHOLE
        )
    except UserError:
        return False


def check_input_files(steps: Iterable[Step], study: Study) -> None:
    """Check that all external input files exist; one line is logged for each missing file.

    In configs of the suite's commands every string with a slash is a path, and every word in a field of paths. A user's
    script may have others, so that only paths below the study's ``paths`` count.

    Raises:
        UserError: a file is missing; others that are missing, too, have been logged.
    """
    own, roots = study.directory.resolve(), study.paths.values()
    missing: dict[Path, list[str]] = {}
    for step in steps:
        for path in step.needs:
            is_file = step.command[0] != PYTHON_SCRIPT or any(path.is_relative_to(root) for root in roots)
            if path.resolve().is_relative_to(own) or not is_file:
                continue
            if not all(map(os.path.exists, expand_brace_ranges(str(path)))):
                missing.setdefault(path, []).append(step.name)
    lines = []
    for path, (first, *others) in missing.items():
        more = f" and {len(others)} more" if others else ""
        lines.append(f"{path}: no such file or directory; needed by {first}{more}")
    for line in lines[:-1]:
        log_info(line)
    if lines:
        raise UserError(lines[-1])


def check_configs(steps: Iterable[Step]) -> None:
    """Check every step's config against its command's config class; a UserError has the first step with an error."""
    checked = [step for step in steps if step.command[0] != PYTHON_SCRIPT]
    configs = [(step.name, step.command, to_plain(step.config)) for step in checked]
    if configs and (problem := first_config_error(configs, checked[0].study)):
        raise UserError(problem)


def first_config_error(configs: Iterable[tuple[str, Sequence[str], Any]], study: Path) -> str | None:
    """The step and the error of the first invalid ``(step, command, config)``, or None.

    Data below the directory ``study`` are not looked at: a step may be about to make them again.
    """
    own = study.resolve()

    def is_outside(path: str) -> bool:
        return Path(path).exists() and not Path(path).resolve().is_relative_to(own)

    for name, words, values in configs:
        try:
            kind = kind_of(tuple(words))
            config: Any = from_plain(find_command(tuple(words)).config_class(), values, what=" ".join(words))
            _check_model(config)
            for benchmark in kind.benchmarks(config) if kind else ():
                if is_outside(benchmark.data):
                    _check_splits(benchmark)
            for source in kind.sources(config) if kind else ():
                if source.format == "table" and is_outside(source.path):
                    _open_source(source)  # checks its columns
        except UserError as error:
            return f"step {name}: {error}"
    return None


def _check_model(config: Any) -> None:
    """Reject an encoder of timm or an architecture that does not exist."""
    from clips.model.architectures import is_encoder_ref, list_architectures
    from clips.model_refs import is_config_file

    encoder = getattr(config, "encoder", None)
    if isinstance(encoder, str) and encoder.startswith(TIMM_PREFIX):
        name, known = encoder.partition("@")[0].partition(".")[0], timm_models()
        if known and name not in known:
            raise unknown_name_error(name, known, "encoder")
    architecture = getattr(getattr(config, "model", None), "architecture", None)
    if isinstance(architecture, str) and not is_encoder_ref(architecture) and not is_config_file(architecture):
        known = (*list_architectures(), *open_clip_models(), *timm_models())
        name = architecture.partition(".")[0] if architecture.startswith(TIMM_PREFIX) else architecture
        if name not in known:
            raise unknown_name_error(name, known, "model.architecture")


@functools.cache
def timm_models() -> tuple[str, ...]:
    """``timm:NAME`` of timm's models and their old names, from its files: its import takes seconds.

    Empty if it is not installed.
    """
    model = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
    renamed = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)\}\)", re.MULTILINE | re.DOTALL)
    old_name = re.compile(r"""['"](\w+)['"]\s*:\s*['"]""")  # None instead of a new name: removed
    names = []
    for file in _package("timm").glob("models/*.py"):
        text = file.read_text(encoding="utf-8")
        names += model.findall(text)
        names += [name for table in renamed.findall(text) for name in old_name.findall(table)]
    return tuple(f"{TIMM_PREFIX}{name}" for name in names)


@functools.cache
def open_clip_models() -> tuple[str, ...]:
    """The names of open_clip's architectures, from its files."""
    return tuple(file.stem for file in _package("open_clip").glob("model_configs/*.json"))


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else Path(os.devnull)


def _check_splits(benchmark: BenchmarkConfig) -> None:
    """Reject a split that a benchmark's data lack."""
    from benchmarks.tasks.data.caption_sets import dataset_of
    from benchmarks.tasks.encoders.classification import ClassificationConfig
    from benchmarks.tasks.encoders.linear_probe import LinearProbeConfig
    from benchmarks.tasks.encoders.retrieval import RetrievalConfig

    if isinstance(benchmark, RetrievalConfig):
        _read_first_captions(dataset_of(benchmark, benchmark.language))
    if isinstance(benchmark, ClassificationConfig | LinearProbeConfig):
        _check_class_split(benchmark.data, benchmark.split)
    if isinstance(benchmark, LinearProbeConfig):
        _check_class_split(benchmark.data, benchmark.train_split)


@functools.cache
def _open_source(source: SourceConfig) -> Source:
    from clips.data.sources import open_source

    return open_source(source)


@functools.cache  # many models are evaluated on the same data
def _read_first_captions(spec: DatasetSpec) -> None:
    from clips.data.formats import read_dataset

    next(iter(read_dataset(spec, "captions").records), None)


@functools.cache
def _check_class_split(data: str, split: str) -> None:
    """Look for a split of classified images by the names of files and directories: ImageNet has 1.28 million images."""
    import pyarrow.parquet

    from clips.data.formats.classes import class_directories
    from clips.data.formats.dataset_format import ALL, DatasetSpec, Location
    from clips.data.formats.rows import (
        SPLIT_COLUMN,
        files_of_splits,
        has_splits,
        is_datasets,
        is_saved,
        one_line_errors,
    )
    from clips.data.formats.webdataset import is_webdataset, shards_of_split
    from clips.data.images import is_image_name
    from clips.text_files import read_json

    location = Location(DatasetSpec(path=data, split=split))
    if not location.path.is_dir():
        raise UserError(f"{data}: expected a directory (WebDataset shards, class directories or parquet files)")
    if is_webdataset(location):
        shards_of_split(location)
        return
    try:
        directory, names = class_directories(location)
        if not any(is_image_name(path.name) for path in (directory / names[0]).iterdir()):
            raise UserError(f"{directory / names[0]}: expected the images of a class, found none")
        return
    except UserError:
        if not is_datasets(location):  # asked last: it may list every file
            raise
    if not has_splits(location.path):
        return
    with one_line_errors(data):
        if is_saved(data):
            splits = read_json(location.path / "dataset_dict.json")["splits"]
        else:
            files = files_of_splits(data)
            splits = [*files, ALL]
            first = next(iter(files.values()))[0] if len(files) == 1 else ""
            if first.endswith(".parquet") and SPLIT_COLUMN in pyarrow.parquet.read_schema(first).names:
                return
    for name in split.split("+"):
        if name.partition("[")[0] not in splits:
            raise unknown_name_error(name, splits, f"split of {data}")
