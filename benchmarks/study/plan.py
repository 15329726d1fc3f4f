"""From a study to its steps and rows. Each kind of step is one function here; the runner knows only steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.catalogue import find
from benchmarks.config import MODEL_FIELDS, BenchmarkConfig, Needs
from benchmarks.study.grid import Settings, merged
from benchmarks.study.reading import check_benchmark
from benchmarks.study.record import NOT_ASKED, CellRecord, RowRecord
from benchmarks.study.schema import Study
from benchmarks.study.steps import Part, Step, StepKind
from clips.errors import UserError, suggest
from clips.references import CONFIG

MARK = "$"  # begins a path in the study's output, or one below an entry of ``paths``
TRAIN_ENCODER = ("clips", "train")
TRAIN_LLAVA = ("llava-bridge", "train")
EVALUATE = ("clips-bench", "run")
MAKE_DATA = "clips scenes"
_LONGEST_NAME = 255  # of a file, for most systems; what is longer is no path


@dataclass(frozen=True, kw_only=True)
class Plan:
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
            parts=() if isinstance(outputs, Path) else tuple(resolved),
        )
        for path in parts:
            self.made_by[path.relative_to(self.study.directory).as_posix()] = name

    def _part(self, step: str, output: Path, config: Settings) -> Part:
        parents: list[str] = []
        needs: list[Path] = []
        resolved = _mapped(config, lambda text: self._resolve(text, step, parents, needs))
        return Part(
            output=output,
            config=resolved,
            parents=tuple(dict.fromkeys(parents)),
            needs=tuple(dict.fromkeys(needs)),
        )

    def _resolve(self, text: str, step: str, parents: list[str], needs: list[Path]) -> str:
        """A text of a config with its ``$`` path replaced, which stands behind an encoder's source."""
        before, path = _behind_source(text)
        if not path.startswith(MARK):
            outside = outside_file(text)
            if outside is not None and not outside.is_relative_to(self.study.directory):
                needs.append(outside)
            return text
        name, _, rest = path[len(MARK) :].partition("/")
        if name in self.study.paths:
            below = Path(self.study.paths[name], rest)
            needs.append(below)
            return f"{before}{below}"
        for made, maker in self.made_by.items():
            if f"{name}/{rest}" == made or f"{name}/{rest}".startswith(f"{made}/"):
                parents.append(maker)
                return f"{before}{self.study.directory / name / rest}"
        known = [f"{MARK}{made}" for made in (*self.made_by, *self.study.paths)]
        raise suggest(path, known, f"path in step '{step}'")


def make_plan(study: Study) -> Plan:
    """All steps and rows of a study.

    Raises:
        UserError: a ``$`` path that nothing makes, an unknown benchmark setting, no row left.
    """
    maker = _Maker(study)
    for name, settings in study.data.items():
        _data_step(maker, name, settings)
    columns = {name: _benchmark(study, name) for name in study.benchmarks}
    if not study.llms and (asking := [name for name, column in columns.items() if column.needs == "llava"]):
        raise UserError(f"benchmarks.{asking[0]}: asks a LLaVA, but the study has no 'llms'")
    wanted = [
        (encoder, llm, seed)
        for llm in (study.llms or (None,))
        for seed in study.seeds
        for encoder in study.encoders
        if study.compares(encoder)
        and not any(rule.skip and rule.matches(encoder, llm, seed) for rule in study.overrides)
    ]
    if not wanted:
        raise UserError("overrides: every row is left out")
    encoders = {(name, seed): _encoder(maker, name, seed) for name, _, seed in wanted}
    llms = {name: _llm(maker, name, study.llms[name]) for _, name, _ in wanted if name is not None}
    rows = [
        _row(maker, columns, encoder, llm, seed, encoders[encoder, seed], llms[llm] if llm else None)
        for encoder, llm, seed in wanted
    ]
    names = {row.name for row in rows}
    kept = tuple(row if row.baseline in names else _without_baseline(row) for row in rows)
    return Plan(study=study, steps=tuple(maker.steps.values()), rows=kept, benchmarks=tuple(columns))


def _without_baseline(row: RowRecord) -> RowRecord:
    return dataclasses.replace(row, baseline=None)


def _data_step(maker: _Maker, name: str, settings: Settings) -> None:
    config = dict(settings)
    command = config.pop("command", MAKE_DATA)
    if not isinstance(command, str) or not command.split():
        raise UserError(f"data.{name}.command: expected a command such as '{MAKE_DATA}', got {command!r}")
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
        config = merged(maker.study.defaults.encoder, entry) | {"output": str(output), "seed": seed}
        maker.add(f"encoder-{named}", "encoder", TRAIN_ENCODER, config, output)
    return _Part(name=named, spec=f"{MARK}encoders/{named}", made=f"encoders/{named}")


def _llm(maker: _Maker, name: str, entry: Settings | str) -> _Part:
    if isinstance(entry, str):
        return _Part(name=name, spec=entry, made=None)
    output = maker.study.directory / "llms" / name
    config = {"stages": ["pretrain"], **merged(maker.study.defaults.llm, entry), "output": str(output)}
    maker.add(f"llm-{name}", "llm", TRAIN_LLAVA, config, output)
    return _Part(name=name, spec=f"{MARK}llms/{name}", made=f"llms/{name}")


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A benchmark of the study: its settings for ``clips-bench run`` and what it examines."""

    settings: Mapping[str, Any]
    needs: Needs


def _benchmark(study: Study, name: str) -> _Column:
    settings = {"name": name, **merged(study.defaults.benchmark, study.benchmarks[name])}
    settings.pop("encoders", None)  # the study's own: which encoders are asked
    where = f"benchmarks.{name}"
    known = [entry.name for entry in dataclasses.fields(BenchmarkConfig)]
    for key in settings:
        if key not in known:
            raise suggest(f"{where}.{key}", [f"{where}.{setting}" for setting in known], "key")
    if settings.get("data") is None:
        raise UserError(f"{where}.data: missing (or give defaults.benchmark.data)")
    check_benchmark(settings, where)
    try:
        config = BenchmarkConfig(**settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return _Column(settings=settings, needs=find(config.entry).needs)


def _row(
    maker: _Maker,
    columns: Mapping[str, _Column],
    encoder: str,
    llm: str | None,
    seed: int,
    tower: _Part,
    language: _Part | None,
) -> RowRecord:
    asked = {name: column for name, column in columns.items() if maker.study.asks(name, encoder)}
    asked_of: dict[str, list[str]] = {"encoder": [], "llava": []}
    no_text: list[str] = []
    reads = has_text_tower(tower.spec)
    for name, column in asked.items():
        group = no_text if column.needs == "encoder" and not reads else asked_of[MODEL_FIELDS[column.needs]]
        group.append(name)
    cells: dict[str, CellRecord] = {}
    not_applicable = dict.fromkeys(columns.keys() - asked.keys(), NOT_ASKED) | dict.fromkeys(no_text, "no text tower")
    artifacts = {"encoder": tower.made, "llm": language.made if language else None}
    if asked_of["encoder"]:
        cells |= _evaluate(maker, columns, asked_of["encoder"], "encoder", tower)
    if asked_of["llava"] and language is not None:
        model = _llava(maker, encoder, llm, seed, tower, language)
        artifacts["llava"] = model.made
        cells |= _evaluate(maker, columns, asked_of["llava"], "llava", model)
    baseline = maker.study.baseline_of(encoder)
    return RowRecord(
        name=row_label(maker.study, encoder, llm, seed),
        encoder=encoder,
        llm=llm,
        seed=seed,
        baseline=row_label(maker.study, baseline, llm, seed) if baseline else None,
        spec=tower.spec.removeprefix(MARK),
        cells=cells,
        not_applicable=not_applicable,
        artifacts={name: made for name, made in artifacts.items() if made},
        settings=maker.study.varied[encoder].settings if encoder in maker.study.varied else {},
        entry=maker.study.varied[encoder].entry if encoder in maker.study.varied else "",
    )


def _llava(maker: _Maker, encoder: str, llm: str | None, seed: int, tower: _Part, language: _Part) -> _Part:
    name = f"{encoder}-{language.name}-s{seed}"
    output = maker.study.directory / "llava" / name
    settings: Settings = maker.study.defaults.llava
    for rule in maker.study.overrides:
        if rule.matches(encoder, llm, seed):
            settings = merged(settings, rule.llava)
    config = {**settings, "encoder": tower.spec, "llm": language.spec, "output": str(output), "seed": seed}
    maker.add(f"llava-{name}", "llava", TRAIN_LLAVA, config, output)
    return _Part(name=name, spec=f"{MARK}llava/{name}", made=f"llava/{name}")


def _evaluate(
    maker: _Maker, columns: Mapping[str, _Column], names: list[str], needs: str, model: _Part
) -> dict[str, CellRecord]:
    """One process evaluates one model on all the benchmarks that examine such models."""
    step = f"evaluate-{needs}-{model.name}"
    results = maker.study.directory / "results"
    if step not in maker.steps:
        common = {
            **maker.study.defaults.evaluation,
            "row": model.name,
            "results": str(results),
            needs: model.spec,
        }
        asked = {name: dict(columns[name].settings) for name in names}
        parts = {results / model.name / f"{name}.json": {**common, "benchmarks": [asked[name]]} for name in names}
        maker.add(step, "evaluation", EVALUATE, {**common, "benchmarks": list(asked.values())}, parts)
    return {name: CellRecord(step=step, result=f"results/{model.name}/{name}.json") for name in names}


def row_label(study: Study, encoder: str, llm: str | None, seed: int) -> str:
    """What a row is called in the table: the encoder, and of LLM and seed what the study varies."""
    with_llm = f" + {llm}" if len(study.llms) > 1 else ""
    with_seed = f" (seed {seed})" if len(study.seeds) > 1 else ""
    return f"{encoder}{with_llm}{with_seed}"


def has_text_tower(spec: str) -> bool:
    """Whether an encoder can be asked about captions: what is trained here can, a timm trunk cannot."""
    if spec.startswith(f"{MARK}encoders/"):
        return True
    config = Path(spec) / CONFIG
    if config.is_file():
        try:
            return "text_cfg" in json.loads(config.read_text(encoding="utf-8")).get("model_cfg", {})
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            return True  # the evaluation says what is wrong with it
    return not spec.startswith(("timm:", "transformers:"))


def _behind_source(text: str) -> tuple[str, str]:
    """Split what comes before a path off: ``timm:NAME@FILE``, ``transformers:DIRECTORY``, or nothing."""
    source, colon, rest = text.partition(":")
    if source == "transformers" and colon:
        return f"{source}:", rest
    if source == "timm" and "@" in rest:
        name, _, file = rest.rpartition("@")
        return f"{source}:{name}@", file
    return "", text


def outside_file(text: str) -> Path | None:
    """The file or directory that a config value names, an encoder's source included, where there is one."""
    if not text or "\n" in text or max(map(len, text.split("/"))) > _LONGEST_NAME:
        return None
    before, name = _behind_source(text)
    path = Path(name)
    if before == "transformers:" and len(path.parts) <= 2 and not path.exists():
        return None  # a name on the hub
    return path if path.is_absolute() or len(path.parts) > 1 else None


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with every text in it replaced by ``change(text)``."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
