"""From a study to its rows and the list of its steps: what each runs, on what it depends, and under which key."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.study.launch import (
    PYTHON_SCRIPT,
    Resources,
    command_settings,
    command_version,
    script_modules,
)
from benchmarks.study.schema import Settings, Study, deep_merge
from benchmarks.study.state import MODULES, PARENT_MODULES, Inputs, Step, StepKey
from benchmarks.study.step_kinds import STEP_KINDS
from benchmarks.study.study_record import (
    EXCLUDED_FROM_BENCHMARK,
    EXISTING_LLAVA_NO_ENCODER,
    NO_LLAVA,
    NO_TEXT_TOWER,
    UNKNOWN_TEXT_TOWER,
    CellRecord,
    RowRecord,
)
from benchmarks.tasks.eval_model import MODEL_FIELDS, RequiredModel
from benchmarks.tasks.registry import configure, get_benchmark
from benchmarks.tasks.run_benchmarks import RunConfig
from clips.core.identity import content_hashes, walk_files
from clips.data.remote_files import expand_brace_ranges, is_remote
from clips.errors import UserError, unknown_name_error
from clips.method.recipes import Recipe, RecipeConfig
from clips.model_refs import HF_HUB_PREFIX, TIMM_PREFIX, is_on_hub
from clips.typed_data import from_plain, to_plain
from llava_bridge.encoders import has_text_tower

PATH_PREFIX = "$"  # of a path in the study's output or below an entry of ``paths``
_OVERRIDABLE = ("batch_size", "precision", "device", "overwrite")  # fields of ``clips-bench run`` for overrides
_STUDY_FIELDS = {"model_name", "output", "benchmarks", "encoder"}  # fields of ``clips-bench run`` that the study sets
_HASH_DIGITS = 12  # of a part's hash


@dataclass(frozen=True, kw_only=True, eq=False)  # hashable, so that functions of a plan can be cached
class StudyPlan:
    """A resolved study: its steps in the order in which they run, its rows and columns, and the text of its file."""

    study: Study
    steps: tuple[Step, ...]
    rows: tuple[RowRecord, ...]
    benchmarks: tuple[str, ...]
    text: str = ""


def build_plan(study: Study) -> StudyPlan:
    """All steps and rows of a study; the steps have no keys and resources yet.

    Raises:
        UserError: an unknown ``$`` path, an unknown benchmark setting, or no row.
    """
    for number, rule in enumerate(study.overrides, 1):
        for key in rule.evaluation.keys() - set(_OVERRIDABLE):
            raise unknown_name_error(key, _OVERRIDABLE, f"key in overrides[{number}].evaluation")
    builder = _PlanBuilder(study)
    for name, settings in study.data.items():
        config = dict(settings)
        command = config.pop("command", None)
        if not isinstance(command, str) or not command.split():
            raise UserError(f"data.{name}.command: expected a command such as 'python make.py', got {command!r}")
        config["output"] = str(study.directory / "data" / name)
        builder.add(f"data-{name}", "data", config, command=tuple(command.split()))
    for name in study.benchmarks:
        column = {"name": name, **deep_merge(study.defaults.benchmark, study.benchmarks[name])}
        column.pop("encoders", None)  # a setting of the study: the encoders to evaluate
        checked = configure(**{"data": "", **column})
        if not checked.data:
            raise UserError(f"benchmarks.{name}.data: missing (or give defaults.benchmark.data)")
        builder.columns[name], builder.needs[name] = column, get_benchmark(checked.entry).needs
    of_llavas = [name for name, needed in builder.needs.items() if needed == "llava"]
    if of_llavas and not study.llms and not study.existing_llavas:
        raise UserError(
            f"benchmarks.{of_llavas[0]}: needs a LLaVA, but the study has no 'llms' and no 'existing_llavas'"
        )
    of_encoders = study.rows()
    existing = [name for name in study.existing_llavas if study.is_included(name)]
    if not of_encoders and not existing:
        raise UserError("overrides: every model is excluded")
    encoders = {(row.encoder, row.seed): builder.encoder(row.encoder, row.seed) for row in of_encoders}
    rows = [builder.row(row, encoders[row.encoder, row.seed]) for row in of_encoders]
    rows += [builder.existing(name) for name in existing]
    names = {row.name for row in rows}
    rows = [row if row.baseline in names else replace(row, baseline=None) for row in rows]
    return StudyPlan(study=study, steps=in_order(builder.steps), rows=tuple(rows), benchmarks=tuple(builder.columns))


def in_order(steps: Mapping[str, Step]) -> tuple[Step, ...]:
    """The steps by name, parents before children, each right before its first dependent.

    An interrupted study therefore has complete models, not only encoders.

    Raises:
        UserError: there is a cycle.
    """
    ordered: dict[str, Step] = {}

    def add(name: str, below: tuple[str, ...] = ()) -> None:
        if name in below:
            cycle = ", ".join(below[below.index(name) :])
            raise UserError(f"data: {cycle}: expected none that needs its own output")
        for parent in steps[name].parents:
            if parent not in ordered:
                add(parent, (*below, name))
        ordered[name] = steps[name]

    have_dependents = {parent for step in steps.values() for parent in step.parents}
    for name in sorted(steps, key=have_dependents.__contains__):  # after those without dependents only cycles are left
        if name not in ordered:
            add(name)
    return tuple(ordered.values())


class _Encoder(NamedTuple):
    name: str  # on disk
    spec: str  # its location in configs
    artifact: str | None  # its directory if it is trained here
    has_text: bool  # whether it has a text tower


class _PlanBuilder:
    """Collects the steps of a study; each is added after the steps that it refers to, but for those of data."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.steps: dict[str, Step] = {}
        self.columns: dict[str, Settings] = {}  # benchmark → its settings for ``clips-bench run``
        self.needs: dict[str, RequiredModel] = {}  # benchmark → the type of model that it evaluates
        self._producers = {f"data/{name}": f"data-{name}" for name in study.data}  # output → name of its step
        self._directory = os.path.realpath(study.directory)

    def encoder(self, name: str, seed: int | None) -> _Encoder:
        """An encoder, with the step that trains it unless it is pretrained."""
        study, entry = self.study, self.study.encoders[name]
        if isinstance(entry, str):
            return _Encoder(name, entry, None, has_text_tower(_locate(entry, study.paths)))
        settings = deep_merge(study.defaults.encoder, entry)
        if "seed" in settings and len(study.seeds) > 1:
            raise UserError(f"encoders.{name}.seed: expected none, as the study has several 'seeds'")
        full_name, artifact = f"{name}-s{seed}", f"encoders/{name}-s{seed}"
        config = {"seed": seed, **settings, "output": str(study.directory / artifact)}
        if f"encoder-{full_name}" not in self.steps:
            self.add(f"encoder-{full_name}", "encoder", config)
        try:
            recipe = Recipe(from_plain(RecipeConfig, config.get("recipe", {}), what="recipe"))
            has_text = bool(recipe.encoded)
        except UserError:
            has_text = True  # the check of the step's config reports it
        return _Encoder(full_name, f"{PATH_PREFIX}{artifact}", artifact, has_text)

    def row(self, row: RowRecord, encoder: _Encoder) -> RowRecord:
        """A row with the sources of its results, whose steps train its LLaVA and evaluate it."""
        study, variant = self.study, row.llava_variant
        of_encoder, of_llava, not_applicable = list[str](), list[str](), dict[str, str]()
        for name, needed in self.needs.items():
            if not study.evaluates(name, row.encoder):
                not_applicable[name] = EXCLUDED_FROM_BENCHMARK
            elif needed == "encoder" and not encoder.has_text:
                source, _, reference = _locate(encoder.spec, study.paths).partition(":")
                unknown = source == "transformers" and not Path(reference, "config.json").is_file()
                not_applicable[name] = UNKNOWN_TEXT_TOWER if unknown else NO_TEXT_TOWER
            elif needed == "llava" and row.llm is None:
                not_applicable[name] = NO_LLAVA
            else:
                (of_llava if MODEL_FIELDS[needed] == "llava" else of_encoder).append(name)
        cells: dict[str, CellRecord] = {}
        artifacts = {"encoder": encoder.artifact} if encoder.artifact else {}
        if of_encoder:  # evaluated once for the rows that share it, so not with what is overridden for one of them
            varying = ("llm", "llava_variant") if encoder.artifact else ("llm", "llava_variant", "seed")
            settings = {**self._overridden({}, row, "evaluation", varying), "encoder": encoder.spec}
            cells |= self._evaluate(of_encoder, encoder.name, "encoder", settings)
        if of_llava and row.llm is not None:
            llava = "-".join([row.encoder, row.llm, *([variant] if variant else []), f"s{row.seed}"])
            artifacts["llava"] = f"llava/{llava}"
            settings = deep_merge(study.defaults.llava, study.llava_variants[variant] if variant else {})
            config = {
                **self._overridden(settings, row, "llava"),
                "encoder": encoder.spec,
                "llm": study.llms[row.llm],
                "output": str(study.directory / "llava" / llava),
                "seed": row.seed,
            }
            self.add(f"llava-{llava}", "llava", config)
            settings = {**self._overridden({}, row, "evaluation"), "llava": f"{PATH_PREFIX}llava/{llava}"}
            cells |= self._evaluate(of_llava, llava, "llava", settings)
        spec = encoder.spec.removeprefix(PATH_PREFIX)
        return replace(row, spec=spec, cells=cells, not_applicable=not_applicable, artifacts=artifacts)

    def _overridden(self, settings: Settings, row: RowRecord, what: str, varying: Sequence[str] = ()) -> Settings:
        """``settings`` with those of a row's overrides, but for overrides by a field that varies among its model's."""
        for override in self.study.overrides:
            if self.study.applies(override, row) and all(getattr(override, field) is None for field in varying):
                settings = deep_merge(settings, getattr(override, what))
        return settings

    def existing(self, name: str) -> RowRecord:
        """The row of an existing LLaVA, with the step that evaluates it."""
        study, entry = self.study, self.study.existing_llavas[name]
        settings: dict[str, Any] = {"llava": entry} if isinstance(entry, str) else dict(entry)
        where = f"existing_llavas.{name}"
        if fields := settings.keys() & _STUDY_FIELDS:
            raise UserError(f"{where}.{min(fields)}: unexpected key, because the study sets it")
        required = {"model_name": "a", "output": "a", "encoder": "a", "benchmarks": [{"name": "pope", "data": "a"}]}
        config = from_plain(RunConfig, {**required, **settings}, what=where)
        if config.llava is None and config.lmms is None:
            raise UserError(f"{where}: expected either 'llava' or 'lmms', a model of lmms-eval's")
        not_applicable = {
            benchmark: EXISTING_LLAVA_NO_ENCODER if study.evaluates(benchmark, name) else EXCLUDED_FROM_BENCHMARK
            for benchmark, needed in self.needs.items()
            if needed != "llava" or not study.evaluates(benchmark, name)
        }
        evaluated = [benchmark for benchmark in self.columns if benchmark not in not_applicable]
        baseline = study.baseline_of(name)
        if baseline in study.encoders:  # a baseline must be a single model; its first seed stands for all
            rows = [row for row in study.rows() if row.encoder == baseline]
            baseline = rows[0].name if len({row.but_for_seed for row in rows}) == 1 else None
        return RowRecord(
            name=name,
            encoder=name,
            baseline=baseline,
            spec=settings["llava"] if "llava" in settings else f"lmms-eval's {settings['lmms']['model']}",
            cells=self._evaluate(evaluated, name, "llava", settings) if evaluated else {},
            not_applicable=not_applicable,
        )

    def _evaluate(self, benchmarks: Iterable[str], model: str, kind: str, settings: Settings) -> dict[str, CellRecord]:
        """Add the step that evaluates one model on ``benchmarks``; rows of one encoder share it."""
        step = f"evaluate-{kind}-{model}"
        if step not in self.steps:
            results = self.study.directory / "results"
            own = {"model_name": model, "output": str(results)}
            common = deep_merge(self.study.defaults.evaluation, settings) | own
            columns = {name: self.columns[name] for name in benchmarks}
            parts = {results / model / f"{name}.json": {**common, "benchmarks": [columns[name]]} for name in columns}
            self.add(step, "evaluation", {**common, "benchmarks": list(columns.values())}, parts)
        return {name: CellRecord(step=step, result=f"results/{model}/{name}.json") for name in benchmarks}

    def add(
        self,
        name: str,
        kind: str,
        config: Settings,
        parts: Mapping[Path, Settings] | None = None,
        command: tuple[str, ...] = (),
    ) -> None:
        """Add a step; ``parts`` are its output files → the part of the config that each depends on.

        By default it writes the directory ``config["output"]``, by the command of its kind.
        """
        command = command or STEP_KINDS[kind].command
        outputs = tuple(parts or [Path(config["output"])])
        self.steps[name] = Step(
            **vars(self._resolve(name, command, config)),
            name=name,
            kind=kind,
            command=command,
            outputs=outputs,
            study=self.study.directory,
            parts={path.name: self._resolve(name, command, part) for path, part in (parts or {}).items()},
        )
        for path in outputs:
            self._producers[path.relative_to(self.study.directory).as_posix()] = name

    def _resolve(self, step: str, command: tuple[str, ...], config: Settings) -> Inputs:
        """A config with its ``$`` paths replaced, and what its strings refer to."""
        parents, needs, hub = dict[str, None](), dict[Path, None](), dict[str, None]()
        of_suite = command[0] != PYTHON_SCRIPT

        def resolve_string(field: str, text: str) -> str:
            whole = ""
            for before, reference in split_refs(text, field):
                if reference.startswith(PATH_PREFIX):
                    name, _, below = reference.removeprefix(PATH_PREFIX).partition("/")
                    root = self.study.paths.get(name)
                    path = Path(self.study.directory / name if root is None else root, below)
                    if root is not None and is_remote(root):
                        whole += before + (f"{root.rstrip('/')}/{below}" if below else root)
                        continue
                    if root is not None:
                        needs[path] = None
                    elif (producer := self._producer(path)) is not None:
                        parents[producer] = None
                    else:
                        known = [f"{PATH_PREFIX}{name}" for name in (*self._producers, *self.study.paths)]
                        raise unknown_name_error(reference, known, f"path in step '{step}'")
                    whole += f"{before}{path}"
                    continue
                whole += before + reference
                if (
                    field not in {"output", "cache_dir"}
                    and (file := _external_file(before, reference, field, of_suite)) is not None
                ):
                    if (producer := self._producer(file)) is not None:
                        parents[producer] = None
                    else:
                        needs[file] = None
                if (repository := _hub_name(before, reference, field)) is not None:
                    hub[repository] = None
            return whole

        resolved = map_strings(config, resolve_string)
        return Inputs(config=resolved, parents=tuple(parents), needs=tuple(needs), hub=tuple(hub))

    def _producer(self, path: Path) -> str | None:
        """The step that writes a path, or None."""
        real = os.path.realpath(path)
        if not real.startswith(f"{self._directory}{os.sep}"):
            return None
        below = Path(real[len(self._directory) + 1 :])
        producers = (self._producers.get(each.as_posix()) for each in (below, *below.parents))
        return next(filter(None, producers), None)


def with_keys(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps, parents before children, with their current keys.

    A step's key is a hash of its dependencies: command, the command's version number, config, external files, and the
    keys of its parents. Settings of a training that do not change its result (``clips.core.identity.RUN_ONLY``) do not
    count. Of source code it includes a user's script only: a change of a command's results requires a higher version
    (``clips.core.identity.VERSIONS``). The study's directory may be moved: its place is no part of a key.
    """
    keys: dict[str, StepKey] = {}
    files_state = functools.cache(external_files_state)  # many steps read the same data

    def depends_on(step: Step, part: Inputs) -> dict[str, Any]:
        return {
            "command": step.command,
            "config": command_settings(step.command, relative_config(to_plain(part.config), step.study)),
            "version": command_version(step.command),
            "parents": {name: keys[name].key for name in part.parents},
            "files": {str(path): files_state(path) for path in part.needs},
        }

    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    keyed = []
    for step in steps:
        whole = depends_on(step, step)
        inherited = [[keys[name].parts[part] for part in (MODULES, PARENT_MODULES)] for name in step.parents]
        parts = {**whole, MODULES: script_modules(step.command), PARENT_MODULES: inherited}
        keys[step.name] = StepKey(
            key=digest(whole),
            outputs={name: digest(depends_on(step, part)) for name, part in step.parts.items()},
            parts={name: digest(value)[:_HASH_DIGITS] for name, value in parts.items()},
        )
        keyed.append(replace(step, key=keys[step.name]))
    return tuple(keyed)


def relative_config(config: Any, directory: Path) -> Any:
    """A config with the paths inside a study's directory written as ``$PATH``, so that moving it changes none."""

    def relative(reference: str) -> str:
        path = Path(reference)
        return f"{PATH_PREFIX}{path.relative_to(directory).as_posix()}" if path.is_relative_to(directory) else reference

    return map_strings(
        config, lambda field, text: "".join(before + relative(each) for before, each in split_refs(text, field))
    )


def external_files_state(path: Path) -> str:
    """A fingerprint of external files: names and contents, which are read once (`content_hashes`).

    A file that was touched or copied with the same content is no change; the hashes in a manifest do not count, since a
    file may be replaced without an update of its manifest.

    Args:
        path: a file, a directory, or files with ranges in their name (``{00..11}.tar``).
    """
    files: list[Path] = []
    for root in map(Path, expand_brace_ranges(str(path))):
        files += walk_files(root) if root.is_dir() else [root]
    hashes = content_hashes(file for file in files if file.is_file())
    return hashlib.sha256("\n".join(f"{file} {hashes.get(file, 'missing')}" for file in files).encode()).hexdigest()


# References in the strings of a step's config: local files, outputs of other steps, names on the Hub.
_HUB_DATASET = "hub dataset"  # stands for ``path`` or ``data`` next to ``format: datasets``: a dataset on the Hub
_HUB_FIELDS = {"llm", "llava", "model", _HUB_DATASET, "model_args"}  # fields whose ``ORG/NAME`` may be on the Hub
# Fields in which a single word is a file or directory; in other fields it is a setting's value.
_PATH_FIELDS = {"encoder", "llm", "llava", "path", "data", "image_root", "pretrained", "pretrained_trunk",
                "shard_sizes"}  # fmt: skip
_PATH_OR_NAME_FIELDS = {"source", "model", "checkpoint", "model_args"}  # here it is one if it exists
_JSON_OR_NAME_FIELDS = {"architecture", "deepspeed"}  # here if it ends with .json
_SERVED_NAME = "name of a served model"  # stands for the field
# no paths, even if their text has a slash
_TEXT_FIELDS = {"prompt", "templates", "judge_model", "chat_template", _SERVED_NAME}
_MAX_FILE_NAME = 255  # on most systems; a longer string is no path
_ARGUMENT = re.compile(r"((?:^|,)\w+=)")  # of lmms-eval's models: pretrained=DIRECTORY,device_map=cpu


def split_refs(text: str, field: str) -> list[tuple[str, str]]:
    """Split ``timm:NAME@FILE``, ``transformers:DIRECTORY`` or a model's arguments into (text before, reference).

    A reference may be a path or name; joined, all of them are the text. ``field`` is its key in the config.
    """
    if field == "model_args" and "=" in text:
        _, *parts = _ARGUMENT.split(text)
        return list(zip(parts[::2], parts[1::2], strict=True))
    source, colon, rest = text.partition(":")
    if source == "transformers" and colon:
        return [(f"{source}:", rest)]
    if source == "timm" and "@" in rest:
        name, _, file = rest.rpartition("@")
        return [(f"{source}:{name}@", file)]
    return [("", text)]


def _locate(spec: str, paths: Mapping[str, str]) -> str:
    """An encoder or path with ``$name/…`` below the study's path of that name."""
    located = ""
    for before, reference in split_refs(spec, "encoder"):
        name, _, below = reference.removeprefix(PATH_PREFIX).partition("/")
        is_named = reference.startswith(PATH_PREFIX) and name in paths
        located += before + (str(Path(paths[name], below)) if is_named else reference)
    return located


def _hub_name(before: str, reference: str, field: str) -> str | None:
    may_be = field in _HUB_FIELDS or before.endswith("transformers:") or reference.startswith(HF_HUB_PREFIX)
    return reference.removeprefix(HF_HUB_PREFIX) if may_be and is_on_hub(reference) else None


def _external_file(before: str, reference: str, field: str, of_suite: bool) -> Path | None:
    """The file, directory or range of files (``{00..11}.tar``) that a reference may be, or None.

    In a user's script a single word may be a name also in the suite's fields of paths, so that it must exist.
    """
    if field in _TEXT_FIELDS or not reference or "\n" in reference:
        return None
    if max(map(len, reference.split("/"))) > _MAX_FILE_NAME or is_remote(reference):
        return None
    if _hub_name(before, reference, field) is not None:
        return None
    path = Path(reference)
    if path.is_absolute() or len(path.parts) > 1 or (field in _PATH_FIELDS | _PATH_OR_NAME_FIELDS and path.exists()):
        return path
    if reference.startswith(TIMM_PREFIX) or (before.startswith(TIMM_PREFIX) and reference == "random"):
        return None
    is_path = field in _PATH_FIELDS or (field in _JSON_OR_NAME_FIELDS and reference.endswith(".json"))
    return path if is_path and of_suite else None


def map_strings(value: Any, change: Callable[[str, str], str], field: str = "") -> Any:
    """``value`` with every string in it replaced by ``change(field, text)``, where ``field`` is the nearest key."""
    if isinstance(value, str):
        return change(field, value)
    if isinstance(value, Mapping):
        renamed = dict.fromkeys(("llava", "model") if value.get("endpoint") else (), _SERVED_NAME)
        renamed |= {"path": _HUB_DATASET, "data": _HUB_DATASET} if value.get("format") == "datasets" else {}
        return {key: map_strings(item, change, renamed.get(key) or key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change, field) for item in value]
    return value


def resolve_resources(resources: Mapping[str, Mapping[str, Any]], steps: Sequence[Step]) -> list[Resources]:
    """The resources of each step: those of its type, overridden by every matching pattern in order.

    A step's config may set ``distributed.num_processes``, the default of ``processes``.

    Raises:
        UserError: a pattern that matches no step, with its close match.
    """
    names = [step.name for step in steps]
    patterns = {name: settings for name, settings in resources.items() if name not in STEP_KINDS}
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise unknown_name_error(pattern, [*STEP_KINDS, *names], "kind or step in 'resources'")
    resolved = []
    for step in steps:
        distributed = step.config.get("distributed")
        processes = distributed.get("num_processes") if isinstance(distributed, Mapping) else None
        settings = {"processes": processes} if isinstance(processes, int) else {}
        settings |= resources.get(step.kind, {})
        for pattern, override in patterns.items():
            settings |= override if fnmatch.fnmatchcase(step.name, pattern) else {}
        settings = {name: value for name, value in settings.items() if value is not None}
        gpus = settings.get("processes", 1) if STEP_KINDS[step.kind].uses_gpus else 0
        resolved.append(Resources(**{"gpus": gpus, **settings}))
    return resolved
