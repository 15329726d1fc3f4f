"""Derive the steps and rows of a study. Each type of step has one method here; the runner knows steps only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.study.path_refs import PATH_PREFIX, external_file, hub_name, locate, map_strings, split_refs
from benchmarks.study.resources import StepKind
from benchmarks.study.rows import (
    EXCLUDED_FROM_BENCHMARK,
    EXISTING_LLAVA_NO_ENCODER,
    NO_LLAVA,
    NO_TEXT_TOWER,
    UNKNOWN_TEXT_TOWER,
    CellRecord,
    RowRecord,
)
from benchmarks.study.schema import Study
from benchmarks.study.steps import OutputSpec, Step
from benchmarks.study.sweep import Settings, deep_merge
from benchmarks.tasks.registry import MODEL_FIELDS, RequiredModel, configure, get_benchmark
from benchmarks.tasks.run_benchmarks import RunConfig
from clips.data.remote_files import is_remote
from clips.errors import UserError, unknown_name_error
from clips.method.recipes import Recipe, RecipeConfig
from clips.typed_data import from_plain
from llava_bridge.encoders import has_text_tower

TRAIN_ENCODER = ("clips", "train")
TRAIN_LLAVA = ("llava-bridge", "train")
EVALUATE = ("clips-bench", "run")
ROW_EVALUATION_FIELDS = ("batch_size", "precision", "device", "overwrite")
"""Fields of ``clips-bench run`` that overrides may change."""
_STUDY_FIELDS = ("model_name", "output", "benchmarks", "encoder")  # fields of ``clips-bench run`` that the study sets


@dataclass(frozen=True, kw_only=True)
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
        for key in rule.evaluation.keys() - set(ROW_EVALUATION_FIELDS):
            raise unknown_name_error(key, ROW_EVALUATION_FIELDS, f"key in overrides[{number}].evaluation")
    builder = _PlanBuilder(study)
    for name, settings in study.data.items():
        builder.add_data(name, settings)
    builder.columns = {name: _column(study, name) for name in study.benchmarks}
    of_llavas = [name for name, column in builder.columns.items() if column.needs == "llava"]
    if of_llavas and not study.llms and not study.existing_llavas:
        raise UserError(
            f"benchmarks.{of_llavas[0]}: needs a LLaVA, but the study has no 'llms' and no 'existing_llavas'"
        )
    of_encoders = study.rows()
    existing = [name for name in study.existing_llavas if study.is_included(name)]
    if not of_encoders and not existing:
        raise UserError("overrides: every model is excluded")
    encoders = {(row.encoder, row.seed): builder.add_encoder(row.encoder, row.seed) for row in of_encoders}
    rows = [builder.add_row(row, encoders[row.encoder, row.seed]) for row in of_encoders]
    rows += [builder.add_existing(name) for name in existing]
    names = {row.name for row in rows}
    rows = [row if row.baseline in names else dataclasses.replace(row, baseline=None) for row in rows]
    return StudyPlan(study=study, steps=in_order(builder.steps), rows=tuple(rows), benchmarks=tuple(builder.columns))


def in_order(steps: Mapping[str, Step]) -> tuple[Step, ...]:
    """The steps by name, parents before children, each right before its first dependent.

    An interrupted study therefore has complete models, not only encoders.

    Raises:
        UserError: a cycle.
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


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A benchmark of the study: its settings for ``clips-bench run`` and the type of model that it evaluates."""

    settings: Mapping[str, Any]
    needs: RequiredModel


def _column(study: Study, name: str) -> _Column:
    settings = {"name": name, **deep_merge(study.defaults.benchmark, study.benchmarks[name])}
    settings.pop("encoders", None)  # a setting of the study: the encoders to evaluate
    config = configure(**{"data": "", **settings})
    if not config.data:
        raise UserError(f"benchmarks.{name}.data: missing (or give defaults.benchmark.data)")
    return _Column(settings=settings, needs=get_benchmark(config.entry).needs)


@dataclass(frozen=True, kw_only=True)
class _Model:
    """An encoder or LLaVA: its name on disk, its location in configs, and its directory if trained here.

    ``has_text`` is of encoders: whether they have a text tower.
    """

    name: str
    spec: str
    artifact: str | None
    has_text: bool = False


class _PlanBuilder:
    """Collects the steps of a study; each is added after the steps that it refers to, but for those of data."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.steps: dict[str, Step] = {}
        self.columns: dict[str, _Column] = {}
        self._producers = {f"data/{name}": f"data-{name}" for name in study.data}  # output → name of its step
        self._directory = os.path.realpath(study.directory)

    def add_data(self, name: str, settings: Settings) -> None:
        """Add the step of one entry of ``data``."""
        config = dict(settings)
        command = config.pop("command", None)
        if not isinstance(command, str) or not command.split():
            raise UserError(f"data.{name}.command: expected a command such as 'python make.py', got {command!r}")
        output = self.study.directory / "data" / name
        self._add(f"data-{name}", "data", tuple(command.split()), {**config, "output": str(output)}, output)

    def add_encoder(self, name: str, seed: int | None) -> _Model:
        """An encoder, with the step that trains it unless it is pretrained."""
        study, entry = self.study, self.study.encoders[name]
        if isinstance(entry, str):
            return _Model(name=name, spec=entry, artifact=None, has_text=has_text_tower(locate(entry, study.paths)))
        full_name = f"{name}-s{seed}"
        settings = deep_merge(study.defaults.encoder, entry)
        if "seed" in settings and len(study.seeds) > 1:
            raise UserError(f"encoders.{name}.seed: expected none, as the study has several 'seeds'")
        artifact = f"encoders/{full_name}"
        output = study.directory / artifact
        config = {"seed": seed, **settings, "output": str(output)}
        if f"encoder-{full_name}" not in self.steps:
            self._add(f"encoder-{full_name}", "encoder", TRAIN_ENCODER, config, output)
        try:
            recipe = Recipe(from_plain(RecipeConfig, config.get("recipe", {}), what="recipe"))
            has_text = bool(recipe.encoded)
        except UserError:
            has_text = True  # the check of the step's config reports it
        return _Model(name=full_name, spec=f"{PATH_PREFIX}{artifact}", artifact=artifact, has_text=has_text)

    def add_row(self, row: RowRecord, encoder: _Model) -> RowRecord:
        """A row with the sources of its results, whose steps train its LLaVA and evaluate it."""
        study = self.study
        of_encoder, of_llava, not_applicable = list[str](), list[str](), dict[str, str]()
        for name, column in self.columns.items():
            if not study.evaluates(name, row.encoder):
                not_applicable[name] = EXCLUDED_FROM_BENCHMARK
            elif column.needs == "encoder" and not encoder.has_text:
                source, _, reference = locate(encoder.spec, study.paths).partition(":")
                unknown = source == "transformers" and not Path(reference, "config.json").is_file()
                not_applicable[name] = UNKNOWN_TEXT_TOWER if unknown else NO_TEXT_TOWER
            elif column.needs == "llava" and row.llm is None:
                not_applicable[name] = NO_LLAVA
            else:
                (of_llava if MODEL_FIELDS[column.needs] == "llava" else of_encoder).append(name)
        cells: dict[str, CellRecord] = {}
        artifacts = {"encoder": encoder.artifact} if encoder.artifact else {}
        if of_encoder:
            varying = ("llm", "llava_variant") if encoder.artifact else ("llm", "llava_variant", "seed")
            settings = self._evaluation_settings(row, {"encoder": encoder.spec}, varying)
            cells |= self._evaluate(of_encoder, encoder.name, "encoder", settings)
        if of_llava and row.llm is not None:
            llava = self._add_llava(row, encoder, row.llm)
            artifacts["llava"] = f"llava/{llava}"
            settings = self._evaluation_settings(row, {"llava": f"{PATH_PREFIX}llava/{llava}"})
            cells |= self._evaluate(of_llava, llava, "llava", settings)
        spec = encoder.spec.removeprefix(PATH_PREFIX)
        return dataclasses.replace(row, spec=spec, cells=cells, not_applicable=not_applicable, artifacts=artifacts)

    def _add_llava(self, row: RowRecord, encoder: _Model, llm: str) -> str:
        """Add the step that trains a row's LLaVA; returns its name on disk."""
        study, variant = self.study, row.llava_variant
        name = "-".join([row.encoder, llm, *([variant] if variant else []), f"s{row.seed}"])  # no part has a hyphen
        output = study.directory / "llava" / name
        settings = deep_merge(study.defaults.llava, study.llava_variants[variant] if variant else {})
        for override in study.overrides:
            if study.applies(override, row):
                settings = deep_merge(settings, override.llava)
        config = {**settings, "encoder": encoder.spec, "llm": study.llms[llm], "output": str(output), "seed": row.seed}
        self._add(f"llava-{name}", "llava", TRAIN_LLAVA, config, output)
        return name

    def _evaluation_settings(self, row: RowRecord, model: Settings, varying: Sequence[str] = ()) -> Settings:
        """The overrides for a row's evaluation, without those of fields in which the rows of its model differ."""
        settings: Settings = {}
        for override in self.study.overrides:
            if self.study.applies(override, row) and all(getattr(override, field) is None for field in varying):
                settings = deep_merge(settings, override.evaluation)
        return deep_merge(settings, model)

    def add_existing(self, name: str) -> RowRecord:
        """The row of an existing LLaVA, with the step that evaluates it."""
        study, entry = self.study, self.study.existing_llavas[name]
        settings: dict[str, Any] = {"llava": entry} if isinstance(entry, str) else dict(entry)
        where = f"existing_llavas.{name}"
        if fields := settings.keys() & set(_STUDY_FIELDS):
            raise UserError(f"{where}.{min(fields)}: unexpected key, because the study sets it")
        required = {"model_name": "a", "output": "a", "encoder": "a", "benchmarks": [{"name": "pope", "data": "a"}]}
        config = from_plain(RunConfig, {**required, **settings}, what=where)
        if config.llava is None and config.lmms is None:
            raise UserError(f"{where}: expected either 'llava' or 'lmms', a model of lmms-eval's")
        evaluated, not_applicable = [], {}
        for benchmark, column in self.columns.items():
            if not study.evaluates(benchmark, name):
                not_applicable[benchmark] = EXCLUDED_FROM_BENCHMARK
            elif column.needs != "llava":
                not_applicable[benchmark] = EXISTING_LLAVA_NO_ENCODER
            else:
                evaluated.append(benchmark)
        baseline = study.baseline_of(name)
        if baseline in study.encoders:  # a baseline must be a single row
            names = [row.name for row in study.rows() if row.encoder == baseline]
            baseline = names[0] if len(names) == 1 else None
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
            entries = {name: dict(self.columns[name].settings) for name in benchmarks}
            parts = {results / model / f"{name}.json": {**common, "benchmarks": [entries[name]]} for name in entries}
            self._add(step, "evaluation", EVALUATE, {**common, "benchmarks": list(entries.values())}, parts)
        return {name: CellRecord(step=step, result=f"results/{model}/{name}.json") for name in benchmarks}

    def _add(
        self,
        name: str,
        kind: StepKind,
        command: tuple[str, ...],
        config: Settings,
        outputs: Mapping[Path, Settings] | Path,
    ) -> None:
        """Resolve the references of ``config`` and add the step.

        Args:
            name: of the step.
            kind: of the step.
            command: the words before ``--config``.
            config: its content.
            outputs: its output directory, or each output file → the part of the config that it depends on.
        """
        parts = {outputs: config} if isinstance(outputs, Path) else outputs
        whole = self._resolve(name, next(iter(parts)), config)
        self.steps[name] = Step(
            name=name,
            kind=kind,
            command=command,
            config=whole.config,
            outputs=tuple(parts),
            study=self.study.directory,
            parents=whole.parents,
            needs=whole.needs,
            hub=whole.hub,
            parts=() if isinstance(outputs, Path) else tuple(self._resolve(name, *part) for part in parts.items()),
        )
        for path in parts:
            self._producers[path.relative_to(self.study.directory).as_posix()] = name

    def _resolve(self, step: str, output: Path, config: Settings) -> OutputSpec:
        """A config with its ``$`` paths replaced, and what its strings refer to."""
        parents, needs, hub = dict[str, None](), dict[Path, None](), dict[str, None]()

        def place_of(reference: str) -> str:
            """A ``$`` path: below an entry of ``paths``, or an output of a step."""
            name, _, below = reference.removeprefix(PATH_PREFIX).partition("/")
            if name in self.study.paths:
                root = self.study.paths[name]
                if is_remote(root):
                    return f"{root.rstrip('/')}/{below}" if below else root
                needs[Path(root, below)] = None
                return str(Path(root, below))
            inside = self.study.directory / name / below
            if (producer := self._producer(inside)) is None:
                known = [f"{PATH_PREFIX}{name}" for name in (*self._producers, *self.study.paths)]
                raise unknown_name_error(reference, known, f"path in step '{step}'")
            parents[producer] = None
            return str(inside)

        def resolve_string(field: str, text: str) -> str:
            whole = ""
            for piece in split_refs(text, field):
                if piece.reference.startswith(PATH_PREFIX):
                    whole += piece.before + place_of(piece.reference)
                    continue
                whole += piece.before + piece.reference
                if field != "output" and (path := external_file(piece, field)) is not None:
                    if (producer := self._producer(path)) is not None:
                        parents[producer] = None
                    else:
                        needs[path] = None
                if (name := hub_name(piece, field)) is not None:
                    hub[name] = None
            return whole

        resolved = map_strings(config, resolve_string)
        return OutputSpec(output=output, config=resolved, parents=tuple(parents), needs=tuple(needs), hub=tuple(hub))

    def _producer(self, path: Path) -> str | None:
        """The step that writes a path, or None."""
        real = os.path.realpath(path)
        if not real.startswith(f"{self._directory}{os.sep}"):
            return None
        below = Path(real[len(self._directory) + 1 :])
        found = (self._producers.get(each.as_posix()) for each in (below, *below.parents))
        return next(filter(None, found), None)
