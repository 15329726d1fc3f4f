"""Derive the steps and rows of a study. Each type of step has one function here; the runner knows steps only."""

from __future__ import annotations

import dataclasses
import graphlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.path_refs import PATH_PREFIX, external_file, hub_name, locate, map_strings, split_refs
from benchmarks.study.rows import (
    EXCLUDED_FROM_BENCHMARK,
    EXISTING_LLAVA_NO_ENCODER,
    NO_LLAVA,
    NO_TEXT_TOWER,
    UNKNOWN_TEXT_TOWER,
    CellRecord,
    RowRecord,
)
from benchmarks.study.schema import Combination, Study
from benchmarks.study.steps import OutputSpec, Step, StepKind, topological_order
from benchmarks.study.sweep import Settings, deep_merge
from benchmarks.tasks.registry import get_benchmark
from benchmarks.tasks.run_config import MODEL_FIELDS, BenchmarkConfig, RequiredModel, RunConfig
from clips.data.remote_files import is_remote
from clips.errors import UserError, unknown_name_error
from clips.method.recipes import Recipe, RecipeConfig
from clips.typed_data import from_plain
from llava_bridge.encoders.spec import has_text_tower

TRAIN_ENCODER = ("clips", "train")
TRAIN_LLAVA = ("llava-bridge", "train")
EVALUATE = ("clips-bench", "run")
ROW_EVALUATION_FIELDS = ("batch_size", "precision", "device", "overwrite")
"""Fields of ``clips-bench run`` that overrides may change."""
_STUDY_FIELDS = ("model_name", "output", "benchmarks", "encoder")  # fields of ``clips-bench run`` that the study sets


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A resolved study: its steps in the order in which they run, its rows and columns."""

    study: Study
    steps: tuple[Step, ...]
    rows: tuple[RowRecord, ...]
    benchmarks: tuple[str, ...]


@dataclass
class _PlanBuilder:
    """Collects the steps of a study; each is added after the steps that it refers to."""

    study: Study
    steps: dict[str, Step] = field(default_factory=dict)
    producers: dict[str, str] = field(default_factory=dict)  # "data/train" → name of its step
    directory: str = field(init=False)

    def __post_init__(self) -> None:
        self.directory = os.path.realpath(self.study.directory)

    def add(
        self,
        name: str,
        kind: StepKind,
        command: tuple[str, ...],
        config: Settings,
        outputs: Mapping[Path, Settings] | Path,
    ) -> None:
        """Resolve the ``$`` paths of ``config`` and add the step.

        Args:
            command: the words before ``--config``.
            outputs: its output directory, or each output file → the part of the config that it depends on.
        """
        parts = {outputs: config} if isinstance(outputs, Path) else outputs
        resolved = [self._resolve(name, output, part) for output, part in parts.items()]
        whole = self._resolve(name, next(iter(parts)), config)
        self.steps[name] = Step(
            name=name,
            kind=kind,
            command=command,
            config=whole.config,
            outputs=tuple(parts),
            parents=whole.parents,
            needs=whole.needs,
            hub=whole.hub,
            parts=() if isinstance(outputs, Path) else tuple(resolved),
        )
        for path in parts:
            self.producers[path.relative_to(self.study.directory).as_posix()] = name

    def _resolve(self, step: str, output: Path, config: Settings) -> OutputSpec:
        parents: list[str] = []
        needs: list[Path] = []
        hub: list[str] = []

        def resolve_string(field: str, text: str) -> str:
            """Replace ``$`` paths and collect the references."""
            whole = ""
            for piece in split_refs(text, field):
                if piece.reference.startswith(PATH_PREFIX):
                    whole += piece.before + self._resolve_path(piece.reference, step, parents, needs)
                    continue
                whole += piece.before + piece.reference
                path = external_file(piece, field)
                if path is not None and field != "output":
                    if (producer := self._producer(path)) is not None:
                        parents.append(producer)
                    else:
                        needs.append(path)
                if (name := hub_name(piece, field)) is not None:
                    hub.append(name)
            return whole

        config = map_strings(config, resolve_string)
        return OutputSpec(
            output=output,
            config=config,
            parents=tuple(dict.fromkeys(parents)),
            needs=tuple(dict.fromkeys(needs)),
            hub=tuple(dict.fromkeys(hub)),
        )

    def _producer(self, path: Path) -> str | None:
        """The step that writes a path, or None."""
        real = os.path.realpath(path)
        if not real.startswith(f"{self.directory}{os.sep}"):
            return None
        below = Path(real[len(self.directory) + 1 :])
        found = (self.producers.get(each.as_posix()) for each in (below, *below.parents))
        return next(filter(None, found), None)

    def _resolve_path(self, path: str, step: str, parents: list[str], needs: list[Path]) -> str:
        name, _, below = path[len(PATH_PREFIX) :].partition("/")
        if name in self.study.paths:
            root = self.study.paths[name]
            if is_remote(root):
                return f"{root.rstrip('/')}/{below}" if below else root
            needs.append(Path(root, below))
            return str(needs[-1])
        inside = self.study.directory / name / below
        if (producer := self._producer(inside)) is not None:
            parents.append(producer)
            return str(inside)
        known = [f"{PATH_PREFIX}{name}" for name in (*self.producers, *self.study.paths)]
        raise unknown_name_error(path, known, f"path in step '{step}'")


def build_plan(study: Study) -> StudyPlan:
    """All steps and rows of a study.

    Raises:
        UserError: an unknown ``$`` path, an unknown benchmark setting, or no row.
    """
    for number, rule in enumerate(study.overrides, 1):
        for key in rule.evaluation.keys() - set(ROW_EVALUATION_FIELDS):
            raise unknown_name_error(key, ROW_EVALUATION_FIELDS, f"key in overrides[{number}].evaluation")
    builder = _PlanBuilder(study, producers={f"data/{name}": f"data-{name}" for name in study.data})
    for name, settings in study.data.items():
        _add_data(builder, name, settings)
    columns = {name: _benchmark(study, name) for name in study.benchmarks}
    of_llavas = [name for name, column in columns.items() if column.needs == "llava"]
    if of_llavas and not study.llms and not study.existing_llavas:
        raise UserError(f"benchmarks.{of_llavas[0]}: needs a LLaVA, but the study has no 'llms' and no "
                        "'existing_llavas'")  # fmt: skip
    combinations = study.combinations()
    existing = [name for name in study.existing_llavas if study.is_included(name)]
    if not combinations and not existing:
        raise UserError("overrides: every model is excluded")
    encoders = {(row.encoder, row.seed): _encoder(builder, row.encoder, row.seed) for row in combinations}
    rows = [_row(builder, columns, row, encoders[row.encoder, row.seed]) for row in combinations]
    rows += [_existing_row(builder, columns, name) for name in existing]
    names = {row.name for row in rows}
    rows = [row if row.baseline in names else dataclasses.replace(row, baseline=None) for row in rows]
    try:
        steps = tuple(topological_order(builder.steps.values()))
    except graphlib.CycleError as error:
        raise UserError(f"data: {', '.join(error.args[1][1:])}: expected none that needs its own output") from None
    return StudyPlan(study=study, steps=steps, rows=tuple(rows), benchmarks=tuple(columns))


def _add_data(builder: _PlanBuilder, name: str, settings: Settings) -> None:
    config = dict(settings)
    command = config.pop("command", None)
    if not isinstance(command, str) or not command.split():
        raise UserError(f"data.{name}.command: expected a command such as 'python make.py', got {command!r}")
    output = builder.study.directory / "data" / name
    builder.add(f"data-{name}", "data", tuple(command.split()), {**config, "output": str(output)}, output)


@dataclass(frozen=True, kw_only=True)
class _Model:
    """An encoder or LLaVA: its name on disk, its location in configs, and its directory if trained here.

    ``has_text`` is of encoders: whether they have a text tower.
    """

    name: str
    spec: str
    artifact: str | None
    has_text: bool = False


def _encoder(builder: _PlanBuilder, name: str, seed: int) -> _Model:
    entry = builder.study.encoders[name]
    if isinstance(entry, str):
        return _Model(name=name, spec=entry, artifact=None, has_text=has_text_tower(locate(entry, builder.study.paths)))
    full_name = f"{name}-s{seed}"
    output = builder.study.directory / "encoders" / full_name
    settings = deep_merge(builder.study.defaults.encoder, entry)
    if "seed" in settings and len(builder.study.seeds) > 1:
        raise UserError(f"encoders.{name}.seed: expected none, as the study has several 'seeds'")
    config = {"seed": seed, **settings, "output": str(output)}
    if f"encoder-{full_name}" not in builder.steps:
        builder.add(f"encoder-{full_name}", "encoder", TRAIN_ENCODER, config, output)
    spec, artifact = f"{PATH_PREFIX}encoders/{full_name}", f"encoders/{full_name}"
    return _Model(name=full_name, spec=spec, artifact=artifact, has_text=_trains_text_tower(config.get("recipe", {})))


def _trains_text_tower(recipe: Any) -> bool:
    try:
        return bool(Recipe(from_plain(RecipeConfig, recipe, what="recipe")).encoded)
    except UserError:
        return True  # the check of the step's config reports it


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A benchmark of the study: its settings for ``clips-bench run`` and the type of model that it evaluates."""

    settings: Mapping[str, Any]
    needs: RequiredModel


def _benchmark(study: Study, name: str) -> _Column:
    settings = {"name": name, **deep_merge(study.defaults.benchmark, study.benchmarks[name])}
    settings.pop("encoders", None)  # a setting of the study: the encoders to evaluate
    where = f"benchmarks.{name}"
    config = from_plain(BenchmarkConfig, {"data": "", **settings}, what=where)
    if not config.data:
        raise UserError(f"{where}.data: missing (or give defaults.benchmark.data)")
    return _Column(settings=settings, needs=get_benchmark(config.entry).needs)


def _row(builder: _PlanBuilder, columns: Mapping[str, _Column], row: Combination, encoder: _Model) -> RowRecord:
    study = builder.study
    evaluated = {name: column for name, column in columns.items() if study.evaluates(name, row.encoder)}
    benchmarks: dict[str, list[str]] = {"encoder": [], "llava": []}
    not_applicable = dict.fromkeys(columns.keys() - evaluated.keys(), EXCLUDED_FROM_BENCHMARK)
    for name, column in evaluated.items():
        if column.needs == "encoder" and not encoder.has_text:
            not_applicable[name] = _reason_without_text(locate(encoder.spec, study.paths))
        elif column.needs == "llava" and row.llm is None:
            not_applicable[name] = NO_LLAVA
        else:
            benchmarks[MODEL_FIELDS[column.needs]].append(name)
    cells: dict[str, CellRecord] = {}
    artifacts = {"encoder": encoder.artifact}
    if benchmarks["encoder"]:
        varying = ("llm", "llava_variant") if encoder.artifact else ("llm", "llava_variant", "seed")
        settings = _evaluation_settings(study, row, {"encoder": encoder.spec}, varying)
        cells |= _evaluate(builder, columns, benchmarks["encoder"], encoder.name, "encoder", settings)
    if benchmarks["llava"] and row.llm is not None:
        llava = _llava(builder, row, encoder, row.llm)
        artifacts["llava"] = llava.artifact
        settings = _evaluation_settings(study, row, {"llava": llava.spec})
        cells |= _evaluate(builder, columns, benchmarks["llava"], llava.name, "llava", settings)
    baseline = study.baseline_of(row.encoder)
    if baseline is not None and baseline not in study.existing_llavas:
        baseline = study.label(dataclasses.replace(row, encoder=baseline))
    return RowRecord(
        name=study.label(row),
        encoder=row.encoder,
        llm=row.llm,
        llava_variant=row.llava_variant,
        seed=row.seed,
        baseline=baseline,
        spec=encoder.spec.removeprefix(PATH_PREFIX),
        cells=cells,
        not_applicable=not_applicable,
        artifacts={name: artifact for name, artifact in artifacts.items() if artifact},
        sweep_settings=study.sweeps[row.encoder].settings if row.encoder in study.sweeps else {},
        sweep_name=study.sweeps[row.encoder].entry if row.encoder in study.sweeps else "",
    )


def _reason_without_text(spec: str) -> str:
    source, _, reference = spec.partition(":")
    unknown = source == "transformers" and not Path(reference, "config.json").is_file()
    return UNKNOWN_TEXT_TOWER if unknown else NO_TEXT_TOWER


def _evaluation_settings(study: Study, row: Combination, model: Settings, varying: Sequence[str] = ()) -> Settings:
    """The overrides for a row's evaluation, without those of fields in which the rows of its model differ."""
    settings: Settings = {}
    for override in study.overrides:
        if study.applies(override, row) and all(getattr(override, field) is None for field in varying):
            settings = deep_merge(settings, override.evaluation)
    return deep_merge(settings, model)


def _llava(builder: _PlanBuilder, row: Combination, encoder: _Model, llm: str) -> _Model:
    study, variant = builder.study, row.llava_variant
    name = "-".join([row.encoder, llm, *([variant] if variant else []), f"s{row.seed}"])  # no part has a hyphen
    output = study.directory / "llava" / name
    settings = deep_merge(study.defaults.llava, study.llava_variants[variant] if variant else {})
    for override in study.overrides:
        if study.applies(override, row):
            settings = deep_merge(settings, override.llava)
    config = {**settings, "encoder": encoder.spec, "llm": study.llms[llm], "output": str(output), "seed": row.seed}
    builder.add(f"llava-{name}", "llava", TRAIN_LLAVA, config, output)
    return _Model(name=name, spec=f"{PATH_PREFIX}llava/{name}", artifact=f"llava/{name}")


def _existing_row(builder: _PlanBuilder, columns: Mapping[str, _Column], name: str) -> RowRecord:
    study, entry = builder.study, builder.study.existing_llavas[name]
    settings: dict[str, Any] = {"llava": entry} if isinstance(entry, str) else dict(entry)
    _check_existing(settings, f"existing_llavas.{name}")
    evaluated, not_applicable = [], {}
    for benchmark, column in columns.items():
        if not study.evaluates(benchmark, name):
            not_applicable[benchmark] = EXCLUDED_FROM_BENCHMARK
        elif column.needs != "llava":
            not_applicable[benchmark] = EXISTING_LLAVA_NO_ENCODER
        else:
            evaluated.append(benchmark)
    baseline = study.baseline_of(name)
    if baseline in study.encoders:  # a baseline must be a single row
        labels = [study.label(row) for row in study.combinations() if row.encoder == baseline]
        baseline = labels[0] if len(labels) == 1 else None
    return RowRecord(
        name=name,
        encoder=name,
        baseline=baseline,
        spec=settings["llava"] if "llava" in settings else f"lmms-eval's {settings['lmms']['model']}",
        cells=_evaluate(builder, columns, evaluated, name, "llava", settings) if evaluated else {},
        not_applicable=not_applicable,
    )


def _check_existing(settings: Settings, where: str) -> None:
    """Reject settings that do not define a LLaVA."""
    if fields := settings.keys() & set(_STUDY_FIELDS):
        raise UserError(f"{where}.{min(fields)}: unexpected key, because the study sets it")
    required = {
        "model_name": "model",
        "output": "results",
        "encoder": "encoder",
        "benchmarks": [{"name": "a", "data": "a"}],
    }
    config = from_plain(RunConfig, {**required, **settings}, what=where)
    if config.llava is None and config.lmms is None:
        raise UserError(f"{where}: expected either 'llava' or 'lmms', a model of lmms-eval's")


def _evaluate(
    builder: _PlanBuilder, columns: Mapping[str, _Column], names: list[str], model: str, kind: str, settings: Settings
) -> dict[str, CellRecord]:
    """Add the step that evaluates one model on the benchmarks ``names``."""
    step = f"evaluate-{kind}-{model}"
    results = builder.study.directory / "results"
    if step not in builder.steps:
        common = deep_merge(builder.study.defaults.evaluation, settings) | {"model_name": model, "output": str(results)}
        benchmarks = {name: dict(columns[name].settings) for name in names}
        parts = {results / model / f"{name}.json": {**common, "benchmarks": [benchmarks[name]]} for name in names}
        builder.add(step, "evaluation", EVALUATE, {**common, "benchmarks": list(benchmarks.values())}, parts)
    return {name: CellRecord(step=step, result=f"results/{model}/{name}.json") for name in names}
