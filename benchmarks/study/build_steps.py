"""From a study to its steps and rows. Each kind of step is one function here; the runner knows only steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.path_refs import PATH_PREFIX, external_file, hub_name, map_strings, split_refs
from benchmarks.study.schema import Combination, Study
from benchmarks.study.steps import OutputSpec, Step, StepKind
from benchmarks.study.study_record import (
    EXCLUDED_FROM_BENCHMARK,
    EXISTING_LLAVA_NO_ENCODER,
    NO_LLAVA,
    CellRecord,
    RowRecord,
)
from benchmarks.study.sweep import Settings, deep_merge
from benchmarks.tasks.registry import get_benchmark
from benchmarks.tasks.run_config import MODEL_FIELDS, BenchmarkConfig, RequiredModel, RunConfig
from clips.data.remote_files import is_remote
from clips.errors import UserError, unknown_name_error
from clips.model_refs import OPEN_CLIP_CONFIG
from clips.typed_data import from_plain

TRAIN_ENCODER = ("clips", "train")
TRAIN_LLAVA = ("llava-bridge", "train")
EVALUATE = ("clips-bench", "run")
DEFAULT_DATA_COMMAND = "clips scenes"
_OUTPUTS = ("output",)  # fields that say where a step writes
ROW_EVALUATION_FIELDS = ("batch_size", "precision", "device", "overwrite")
"""Fields of ``clips-bench run`` that exceptions for rows may change."""
_OWN = ("model_name", "output", "benchmarks", "encoder")  # fields of ``clips-bench run`` that the study itself gives


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study, resolved: its steps (parents first), rows, and columns."""

    study: Study
    steps: tuple[Step, ...]
    rows: tuple[RowRecord, ...]
    benchmarks: tuple[str, ...]


@dataclass
class _Maker:
    """Collects the steps of a study; each is added after the steps that it refers to."""

    study: Study
    steps: dict[str, Step] = field(default_factory=dict)
    made_by: dict[str, str] = field(default_factory=dict)  # "data/train" → the step that makes it

    def add(
        self,
        name: str,
        kind: StepKind,
        command: tuple[str, ...],
        config: Settings,
        outputs: Mapping[Path, Settings] | Path,
    ) -> None:
        """Resolve the ``$`` paths of ``config`` and note the step.

        Args:
            name: of the step.
            kind: what it makes.
            command: the words before ``--config``.
            config: its config.
            outputs: the directory that it makes, or each of its files with the part of the config behind it.
        """
        parts = {outputs: config} if isinstance(outputs, Path) else outputs
        resolved = [self._part(name, output, part) for output, part in parts.items()]
        whole = self._part(name, next(iter(parts)), config)
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
            self.made_by[path.relative_to(self.study.directory).as_posix()] = name

    def _part(self, step: str, output: Path, config: Settings) -> OutputSpec:
        parents: list[str] = []
        needs: list[Path] = []
        hub: list[str] = []

        def resolved(field: str, text: str) -> str:
            """The text with its ``$`` paths replaced; what it refers to is noted."""
            whole = ""
            for piece in split_refs(text, field):
                if piece.reference.startswith(PATH_PREFIX):
                    whole += piece.before + self._place(piece.reference, step, parents, needs)
                    continue
                whole += piece.before + piece.reference
                outside = external_file(piece, field)
                if outside is not None and field not in _OUTPUTS:
                    if (maker := self._maker_of(outside)) is not None:
                        parents.append(maker)
                    else:
                        needs.append(outside)
                if (name := hub_name(piece, field)) is not None:
                    hub.append(name)
            return whole

        config = map_strings(config, resolved)
        return OutputSpec(
            output=output,
            config=config,
            parents=tuple(dict.fromkeys(parents)),
            needs=tuple(dict.fromkeys(needs)),
            hub=tuple(dict.fromkeys(hub)),
        )

    def _maker_of(self, path: Path) -> str | None:
        """The step that makes a path, however it is written; None where none does."""
        directory, place = self.study.directory.resolve(), path.resolve()
        found = (step for made, step in self.made_by.items() if place.is_relative_to(directory / made))
        return next(found, None)

    def _place(self, path: str, step: str, parents: list[str], needs: list[Path]) -> str:
        """Where a ``$`` path is."""
        name, _, rest = path[len(PATH_PREFIX) :].partition("/")
        if name in self.study.paths:
            root = self.study.paths[name]
            if is_remote(root):
                return f"{root.rstrip('/')}/{rest}" if rest else root
            needs.append(Path(root, rest))
            return str(needs[-1])
        inside = self.study.directory / name / rest
        if (maker := self._maker_of(inside)) is not None:
            parents.append(maker)
            return str(inside)
        known = [f"{PATH_PREFIX}{made}" for made in (*self.made_by, *self.study.paths)]
        raise unknown_name_error(path, known, f"path in step '{step}'")


def build_plan(study: Study) -> StudyPlan:
    """All steps and rows of a study.

    Raises:
        UserError: a ``$`` path that nothing makes, an unknown benchmark setting, no row left.
    """
    for number, rule in enumerate(study.overrides, 1):
        for key in rule.evaluation.keys() - set(ROW_EVALUATION_FIELDS):
            raise unknown_name_error(key, ROW_EVALUATION_FIELDS, f"key in overrides[{number}].evaluation")
    maker = _Maker(study)
    for name, settings in study.data.items():
        _data_step(maker, name, settings)
    columns = {name: _benchmark(study, name) for name in study.benchmarks}
    asking = [name for name, column in columns.items() if column.needs == "llava"]
    if asking and not study.llms and not study.existing_llavas:
        raise UserError(f"benchmarks.{asking[0]}: asks a LLaVA, but the study has no 'llms' and no 'existing_llavas'")
    wanted = study.combinations()
    there = [name for name in study.existing_llavas if study.compares(name)]
    if not wanted and not there:
        raise UserError("overrides: every row is left out")
    encoders = {(row.encoder, row.seed): _encoder(maker, row.encoder, row.seed) for row in wanted}
    llms = {row.llm: _llm(maker, row.llm, study.llms[row.llm]) for row in wanted if row.llm is not None}
    rows = [
        _row(maker, columns, row, encoders[row.encoder, row.seed], llms[row.llm] if row.llm else None) for row in wanted
    ]
    rows += [_existing_row(maker, columns, name) for name in there]
    names = {row.name for row in rows}
    kept = tuple(row if row.baseline in names else _without_baseline(row) for row in rows)
    return StudyPlan(study=study, steps=tuple(maker.steps.values()), rows=kept, benchmarks=tuple(columns))


def _without_baseline(row: RowRecord) -> RowRecord:
    return dataclasses.replace(row, baseline=None)


def _data_step(maker: _Maker, name: str, settings: Settings) -> None:
    config = dict(settings)
    command = config.pop("command", DEFAULT_DATA_COMMAND)
    if not isinstance(command, str) or not command.split():
        raise UserError(f"data.{name}.command: expected a command such as '{DEFAULT_DATA_COMMAND}', got {command!r}")
    output = maker.study.directory / "data" / name
    maker.add(f"data-{name}", "data", tuple(command.split()), {**config, "output": str(output)}, output)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """An encoder or LLM of a row: its name on disk, what configs call it, and its directory if it is made here."""

    name: str
    spec: str
    made: str | None


def _encoder(maker: _Maker, name: str, seed: int) -> _Part:
    entry = maker.study.encoders[name]
    if isinstance(entry, str):
        return _Part(name=name, spec=entry, made=None)
    named = f"{name}-s{seed}"
    if f"encoder-{named}" not in maker.steps:
        output = maker.study.directory / "encoders" / named
        config = deep_merge(maker.study.defaults.encoder, entry) | {"output": str(output), "seed": seed}
        maker.add(f"encoder-{named}", "encoder", TRAIN_ENCODER, config, output)
    return _Part(name=named, spec=f"{PATH_PREFIX}encoders/{named}", made=f"encoders/{named}")


def _llm(maker: _Maker, name: str, entry: Settings | str) -> _Part:
    if isinstance(entry, str):
        return _Part(name=name, spec=entry, made=None)
    output = maker.study.directory / "llms" / name
    config = {"stages": ["llm_pretrain"], **deep_merge(maker.study.defaults.llm, entry), "output": str(output)}
    maker.add(f"llm-{name}", "llm", TRAIN_LLAVA, config, output)
    return _Part(name=name, spec=f"{PATH_PREFIX}llms/{name}", made=f"llms/{name}")


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A benchmark of the study: its settings for ``clips-bench run`` and what it examines."""

    settings: Mapping[str, Any]
    needs: RequiredModel


def _benchmark(study: Study, name: str) -> _Column:
    settings = {"name": name, **deep_merge(study.defaults.benchmark, study.benchmarks[name])}
    settings.pop("encoders", None)  # the study's own: which encoders are asked
    where = f"benchmarks.{name}"
    config = from_plain(BenchmarkConfig, {"data": "", **settings}, what=where)
    if not config.data:
        raise UserError(f"{where}.data: missing (or give defaults.benchmark.data)")
    return _Column(settings=settings, needs=get_benchmark(config.entry).needs)


def _row(
    maker: _Maker, columns: Mapping[str, _Column], row: Combination, tower: _Part, language: _Part | None
) -> RowRecord:
    study = maker.study
    asked = {name: column for name, column in columns.items() if study.asks(name, row.encoder)}
    asked_of: dict[str, list[str]] = {"encoder": [], "llava": []}
    not_applicable = dict.fromkeys(columns.keys() - asked.keys(), EXCLUDED_FROM_BENCHMARK)
    reads = has_text_tower(tower.spec)
    for name, column in asked.items():
        if column.needs == "encoder" and not reads:
            not_applicable[name] = "no text tower"
        elif column.needs == "llava" and language is None:
            not_applicable[name] = NO_LLAVA
        else:
            asked_of[MODEL_FIELDS[column.needs]].append(name)
    cells: dict[str, CellRecord] = {}
    artifacts = {"encoder": tower.made, "llm": language.made if language else None}
    if asked_of["encoder"]:
        shared = ("llm", "llava_variant") if tower.made else ("llm", "llava_variant", "seed")
        model = _evaluated(study, row, {"encoder": tower.spec}, shared)
        cells |= _evaluate(maker, columns, asked_of["encoder"], tower.name, "encoder", model)
    if asked_of["llava"] and language is not None:
        made = _llava(maker, row, tower, language)
        artifacts["llava"] = made.made
        model = _evaluated(study, row, {"llava": made.spec})
        cells |= _evaluate(maker, columns, asked_of["llava"], made.name, "llava", model)
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
        spec=tower.spec.removeprefix(PATH_PREFIX),
        cells=cells,
        not_applicable=not_applicable,
        artifacts={name: made for name, made in artifacts.items() if made},
        sweep_settings=study.sweeps[row.encoder].settings if row.encoder in study.sweeps else {},
        sweep_name=study.sweeps[row.encoder].entry if row.encoder in study.sweeps else "",
    )


def _evaluated(study: Study, row: Combination, model: Settings, shared: Sequence[str] = ()) -> Settings:
    """How a row's model is evaluated, by the exceptions that are for it.

    Args:
        study: the study.
        row: of the model.
        model: the settings that name it.
        shared: in what other rows with this model differ from it; an exception that asks for these is not for all.
    """
    settings: Settings = {}
    for rule in study.overrides:
        if study.applies(rule, row) and all(getattr(rule, field) is None for field in shared):
            settings = deep_merge(settings, rule.evaluation)
    return deep_merge(settings, model)


def _llava(maker: _Maker, row: Combination, tower: _Part, language: _Part) -> _Part:
    parts = (row.encoder, language.name, *([row.llava_variant] if row.llava_variant else []), f"s{row.seed}")
    name = "-".join(parts)  # which no part's name has in it
    output = maker.study.directory / "llava" / name
    settings = deep_merge(
        maker.study.defaults.llava, maker.study.llava_variants[row.llava_variant] if row.llava_variant else {}
    )
    for rule in maker.study.overrides:
        if maker.study.applies(rule, row):
            settings = deep_merge(settings, rule.llava)
    config = {**settings, "encoder": tower.spec, "llm": language.spec, "output": str(output), "seed": row.seed}
    maker.add(f"llava-{name}", "llava", TRAIN_LLAVA, config, output)
    return _Part(name=name, spec=f"{PATH_PREFIX}llava/{name}", made=f"llava/{name}")


def _existing_row(maker: _Maker, columns: Mapping[str, _Column], name: str) -> RowRecord:
    """The row of a LLaVA that is there already: it is asked what LLaVAs are asked."""
    study, entry = maker.study, maker.study.existing_llavas[name]
    settings: dict[str, Any] = {"llava": entry} if isinstance(entry, str) else dict(entry)
    _check_existing(settings, f"existing_llavas.{name}")
    asked = [column for column in columns if study.asks(column, name)]
    mine = [column for column in asked if columns[column].needs == "llava"]
    apart = dict.fromkeys(asked, EXISTING_LLAVA_NO_ENCODER) | dict.fromkeys(
        columns.keys() - set(asked), EXCLUDED_FROM_BENCHMARK
    )
    baseline = study.baseline_of(name)
    if baseline in study.encoders:  # the one row that it has, where it has one
        labels = [study.label(row) for row in study.combinations() if row.encoder == baseline]
        baseline = labels[0] if len(labels) == 1 else None
    spec = settings["llava"] if "llava" in settings else f"lmms-eval's {settings['lmms']['model']}"
    return RowRecord(
        name=name,
        encoder=name,
        baseline=baseline,
        spec=spec,
        cells=_evaluate(maker, columns, mine, name, "llava", settings) if mine else {},
        not_applicable={column: why for column, why in apart.items() if column not in mine},
    )


def _check_existing(settings: Settings, where: str) -> None:
    """Refuse settings that are not those of a LLaVA to be evaluated."""
    if own := settings.keys() & set(_OWN):
        raise UserError(f"{where}.{min(own)}: expected no such key, for the study itself gives it")
    given = {
        "model_name": "model",
        "output": "results",
        "encoder": "encoder",
        "benchmarks": [{"name": "a", "data": "a"}],
    }
    config = from_plain(RunConfig, {**given, **settings}, what=where)
    if config.llava is None and config.lmms is None:
        raise UserError(f"{where}: expected either 'llava' or 'lmms', a model of lmms-eval's")


def _evaluate(
    maker: _Maker, columns: Mapping[str, _Column], names: list[str], row: str, needs: str, model: Settings
) -> dict[str, CellRecord]:
    """One process evaluates one model on all the benchmarks that examine such models.

    Args:
        maker: of the plan.
        columns: all benchmarks.
        names: of those that are asked.
        row: the model's name, which its results have.
        needs: what it is, for the name of the step.
        model: the settings of ``clips-bench run`` that name it.
    """
    step = f"evaluate-{needs}-{row}"
    results = maker.study.directory / "results"
    if step not in maker.steps:
        common = deep_merge(maker.study.defaults.evaluation, model) | {"model_name": row, "output": str(results)}
        asked = {name: dict(columns[name].settings) for name in names}
        parts = {results / row / f"{name}.json": {**common, "benchmarks": [asked[name]]} for name in names}
        maker.add(step, "evaluation", EVALUATE, {**common, "benchmarks": list(asked.values())}, parts)
    return {name: CellRecord(step=step, result=f"results/{row}/{name}.json") for name in names}


def has_text_tower(spec: str) -> bool:
    """Whether an encoder can be asked about captions: what is trained here can, a timm trunk cannot."""
    if spec.startswith(f"{PATH_PREFIX}encoders/"):
        return True
    config = Path(spec) / OPEN_CLIP_CONFIG
    if config.is_file():
        try:
            return "text_cfg" in json.loads(config.read_text(encoding="utf-8")).get("model_cfg", {})
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            return True  # the evaluation says what is wrong with it
    return not spec.startswith(("timm:", "transformers:"))
