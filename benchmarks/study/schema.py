"""The study file as frozen dataclasses, and how it is read.

    name: demo
    baseline: clip
    data:       {train: {command: python make.py}}  # which writes <output>/data/train
    defaults:   {encoder: {...}, llava: {...}, benchmark: {...}, evaluation: {...}}
    encoders:
      clip:         {recipe: {name: clip}}          # a mapping: trained here, overrides defaults.encoder
      efficientnet: "timm:efficientnet_lite0"       # a string: pretrained
      sized: {sweep: {global_batch_size: [64, 128]}}        # sized.64 and sized.128
    llms:
      stories:  path/to/any/transformers/llm        # or ORG/NAME on the Hub
    llava_variants:                                 # ways to train a LLaVA, override defaults.llava; optional
      mlp:      {}
      pooled:   {projector: {type: pool}}
    existing_llavas:
      theirs:   path/to/a/llava
      other:    {lmms: {model: llava_hf, model_args: "pretrained=path/to/it"}}
    benchmarks: {retrieval: {data: $data/test}, pope: {}}

    resources: {encoder: {processes: 8}}          # see ``launch``

A value that begins with ``$`` is a path in the study's output, and the step that creates it runs first; or it is a path
below an entry of ``paths``. The rows are encoders × LLMs × LLaVA variants × seeds, followed by the existing LLaVAs; the
columns are the benchmarks.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.results.reference_results import select_reference_results
from benchmarks.study.launch import Resources
from benchmarks.study.study_record import Display, FigureSpec, RowRecord
from clips.errors import UserError, unknown_name_error
from clips.ranges import NonNegative, NonNegativeFloat, Positive
from clips.text_files import read_yaml
from clips.typed_data import from_plain, to_plain

Settings = Mapping[str, Any]  # fields of a command's config; the command checks them
SWEEP = "sweep"
_OWN_FOLDERS = {"data", "encoders", "llava", "results", "steps", "report", "trash"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,59}")
_NAME_PART = re.compile(r"[A-Za-z0-9_.]+")
_ENTRIES = ("data", "encoders", "llms", "llava_variants", "existing_llavas", "benchmarks", "resources")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Default settings, overridden by those of an encoder or benchmark.

    Args:
        encoder: fields of ``clips train``.
        llava: fields of ``llava-bridge train`` for every row's LLaVA.
        benchmark: fields of every benchmark (``benchmarks`` in ``clips-bench run``).
        evaluation: the other fields of ``clips-bench run``.
    """

    encoder: Settings = field(default_factory=dict)
    llava: Settings = field(default_factory=dict)
    benchmark: Settings = field(default_factory=dict)
    evaluation: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Override:
    """Settings for the rows that match all of ``encoder``, ``llm``, ``llava_variant`` and ``seed`` that are given.

    Args:
        encoder: name, entry or pattern (``photos.*``).
        llm: name or pattern.
        llava_variant: name or pattern.
        seed: of the row.
        exclude: remove these rows.
        llava: overrides ``defaults.llava``.
        evaluation: overrides ``defaults.evaluation``: batch_size, precision, device, overwrite. An encoder is evaluated
            once for all its LLaVAs, so that an override of an LLM or variant does not apply to its own benchmarks, nor
            one of a seed if the encoder is not trained here.
    """

    encoder: str | None = None
    llm: str | None = None
    llava_variant: str | None = None
    seed: int | None = None
    exclude: bool = False
    llava: Settings = field(default_factory=dict)
    evaluation: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One combination of a sweep: the entry with ``sweep``, and dotted field → value."""

    entry: str
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of models.

    Args:
        name: of the study; its output goes to ``runs/<name>``.
        title: of the report; by default the name.
        question: that the study answers, for the report.
        notes: caveats about data and setup, one line each.
        output: the study's directory; by default ``runs/<name>``.
        baseline: the encoder or existing LLaVA that the others are compared with; or a mapping from encoders, entries
            or patterns (``photos.*``) to their baselines, the first match wins.
        jobs: maximum number of concurrent steps.
        threads: threads of each step; by default the cores divided by ``jobs``.
        confirm_hours: steps that took longer in all are recomputed only with ``--yes``.
        profile: directory of a Snakemake profile: where steps run, such as a SLURM cluster; by default this machine.
        resources: type of step, or pattern of step names → fields of ``launch.Resources``.
        seeds: every encoder and LLaVA is trained once with each.
        paths: name → directory outside the study, for ``$name/…``.
        data: name → ``command``, one of the suite's or ``python SCRIPT``, and settings, its ``--config``.
        defaults: shared settings.
        encoders: name → settings of ``clips train``, or the location of a pretrained encoder.
        llms: name → the location of an LLM. Without LLMs no LLaVA is trained.
        llava_variants: name → settings of ``llava-bridge train``, which override ``defaults.llava``; every encoder is
            combined with every LLM in every variant.
        existing_llavas: name → a directory or name on the Hub, or settings of ``clips-bench run`` with ``llava`` or
            ``lmms``, which override ``defaults.evaluation``.
        overrides: settings for some rows.
        benchmarks: column → settings of the benchmark; their key ``encoders`` limits it to these encoders, LLaVAs,
            entries or patterns.
        figures: of the report, see ``FigureSpec``.
        reference_results: models of papers, shown next to the report's table (``clips``, ``openclip:NAME``).
        display: names of models and benchmarks, and groups of models, in the report.
        include: encoders, LLaVAs, entries or patterns to compare; all if empty.
        sweeps: encoder → its sweep point, for encoders of entries with ``sweep``.
    """

    name: str
    title: str = ""
    question: str = ""
    notes: tuple[str, ...] = ()
    output: str | None = None
    baseline: str | Mapping[str, str] | None = None
    jobs: Positive = 1
    threads: Positive | None = None
    confirm_hours: NonNegativeFloat = 1.0
    profile: str | None = None
    resources: Mapping[str, Settings] = field(default_factory=dict)
    seeds: tuple[NonNegative, ...] = (0,)
    paths: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Settings] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    encoders: Mapping[str, Settings | str] = field(default_factory=dict)
    llms: Mapping[str, str] = field(default_factory=dict)
    llava_variants: Mapping[str, Settings] = field(default_factory=dict)
    existing_llavas: Mapping[str, Settings | str] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    benchmarks: Mapping[str, Settings] = field(default_factory=dict)
    figures: tuple[FigureSpec, ...] = ()
    reference_results: tuple[str, ...] = ()
    display: Display = field(default_factory=Display)
    include: tuple[str, ...] = ()
    sweeps: Mapping[str, SweepPoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {
            f"{what}.{name}": name
            for what in ("paths", "data", "encoders", "llms", "llava_variants", "existing_llavas")
            for name in getattr(self, what)
        }
        for where, name in {**named, "name": self.name}.items():
            if not _NAME.fullmatch(name):
                raise UserError(f"{where}: expected a name of up to 60 letters, digits, '_' and '.', got '{name:.250}'")
        for name in _OWN_FOLDERS.intersection(self.paths):
            raise UserError(f"paths.{name}: the study has a directory of this name; choose another")
        if not self.models:
            raise UserError("encoders: expected at least one, or one of 'existing_llavas'")
        if self.llava_variants and not self.llms:
            raise UserError("llava_variants: expected none without 'llms', because they define how LLaVAs are trained")
        for name in self.encoders.keys() & self.existing_llavas.keys():
            raise UserError(f"existing_llavas.{name}: an encoder has this name already; choose another")
        select_reference_results(self.reference_results)
        if not self.benchmarks:
            raise UserError("benchmarks: expected at least one")
        for name in [self.baseline] if isinstance(self.baseline, str) else (self.baseline or {}).values():
            if name not in self.models:
                raise unknown_name_error(name, self.models, "encoder in 'baseline'")
        for name in self.baseline if isinstance(self.baseline, Mapping) else ():
            self._check_encoder(name, "baseline")
        for name, settings in self.resources.items():
            from_plain(Resources, settings, what=f"resources.{name}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds: expected different integers, got {list(self.seeds)}")
        for override in self.overrides:
            if override.encoder is not None:
                self._check_encoder(override.encoder, "overrides", [*self.encoders])
            for what, known in (("llm", self.llms), ("llava_variant", self.llava_variants)):
                name = getattr(override, what)
                if name is not None and not fnmatch.filter(known, name):
                    raise unknown_name_error(name, known, f"{what} in 'overrides'")
        for name, settings in self.benchmarks.items():
            encoders = settings.get("encoders") or []
            if not isinstance(encoders, list) or not all(isinstance(each, str) for each in encoders):
                raise UserError(f"benchmarks.{name}.encoders: expected a list of names, got {encoders!r:.80}")
            for each in encoders:
                self._check_encoder(each, f"benchmarks.{name}.encoders")
        for number, figure in enumerate(self.figures, 1):
            where = f"figures[{number}]"
            if figure.benchmark not in self.benchmarks:
                raise unknown_name_error(figure.benchmark, self.benchmarks, f"benchmark in '{where}.benchmark'")
            points = {point.entry: point.settings for point in self.sweeps.values()}
            if figure.encoders not in points:
                raise unknown_name_error(figure.encoders, points, f"entry with 'sweep' in '{where}.encoders'")
            if figure.x not in points[figure.encoders]:
                raise unknown_name_error(figure.x, points[figure.encoders], f"setting in '{where}.x'")
            if isinstance(points[figure.encoders][figure.x], str):
                raise UserError(f"{where}.x: expected a setting whose values are numbers, got '{figure.x}'")
            for name in figure.reference_lines:
                self._check_encoder(name, f"{where}.reference_lines")
        shown = [row for row in self._every_row() if row.seed == self.seeds[0]]  # whether or not they are included
        shown += [RowRecord(name=name, encoder=name) for name in self.existing_llavas]
        self.display.check(shown, self.benchmarks)

    def _check_encoder(self, name: str, where: str, models: Sequence[str] | None = None) -> None:
        """Reject a name that matches none of ``models``, by default all."""
        known = self.models if models is None else models
        if not any(self.matches(name, model) for model in known):
            entries = dict.fromkeys(point.entry for point in self.sweeps.values())
            raise unknown_name_error(name, [*known, *entries], f"encoder in '{where}'")

    @property
    def directory(self) -> Path:
        """The directory of all outputs."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def models(self) -> list[str]:
        """Names of the encoders and the existing LLaVAs."""
        return [*self.encoders, *self.existing_llavas]

    def matches(self, name: str, encoder: str) -> bool:
        """Whether ``name`` is the encoder, its entry with ``sweep``, or a matching pattern such as ``photos.*``."""
        point = self.sweeps.get(encoder)
        return fnmatch.fnmatchcase(encoder, name) or (point is not None and point.entry == name)

    def is_included(self, encoder: str) -> bool:
        """Whether ``include`` contains an encoder or LLaVA."""
        return not self.include or any(self.matches(name, encoder) for name in self.include)

    def evaluates(self, benchmark: str, encoder: str) -> bool:
        """Whether a benchmark evaluates an encoder or LLaVA: by default all, else those in its ``encoders``."""
        encoders = self.benchmarks[benchmark].get("encoders")
        return encoders is None or any(self.matches(name, encoder) for name in encoders)

    def applies(self, override: Override, row: RowRecord) -> bool:
        """Whether an override applies to a row."""
        return (
            (override.encoder is None or self.matches(override.encoder, row.encoder))
            and (override.llm is None or fnmatch.fnmatchcase(row.llm or "", override.llm))
            and (override.llava_variant is None or fnmatch.fnmatchcase(row.llava_variant or "", override.llava_variant))
            and override.seed in {None, row.seed}
        )

    def baseline_of(self, encoder: str) -> str | None:
        """The baseline of an encoder or LLaVA; None for a baseline itself."""
        if isinstance(self.baseline, Mapping):
            baseline = next((base for name, base in self.baseline.items() if self.matches(name, encoder)), None)
        else:
            baseline = self.baseline
        return None if baseline == encoder else baseline

    def rows(self) -> list[RowRecord]:
        """The rows of encoders, without excluded ones, in the order of the table; their results are not known yet."""
        exclusions = [override for override in self.overrides if override.exclude]
        return [
            row
            for row in self._every_row()
            if self.is_included(row.encoder) and not any(self.applies(exclusion, row) for exclusion in exclusions)
        ]

    def _every_row(self) -> Iterator[RowRecord]:
        """Encoders × LLMs × LLaVA variants × seeds; the names have those parts that vary in the study."""
        for llm, variant, seed in itertools.product(self.llms or (None,), self.llava_variants or (None,), self.seeds):
            suffix = f" + {llm}" if len(self.llms) > 1 else ""
            suffix += f" by {variant}" if len(self.llava_variants) > 1 else ""
            suffix += f" (seed {seed})" if len(self.seeds) > 1 else ""
            for encoder in self.encoders:
                baseline, point = self.baseline_of(encoder), self.sweeps.get(encoder)
                yield RowRecord(
                    name=f"{encoder}{suffix}",
                    encoder=encoder,
                    llm=llm,
                    llava_variant=variant,
                    seed=seed,
                    baseline=f"{baseline}{suffix}" if baseline in self.encoders else baseline,
                    sweep_settings=point.settings if point else {},
                    sweep_name=point.entry if point else "",
                )


def read_study(path: str | Path) -> Study:
    """Read and check a study file; a UserError names file and field, with the close match of an unknown key."""
    if Path(path).is_dir():
        raise UserError(f"{path}: expected a study file (YAML), got a directory")
    content = read_yaml(path)
    try:
        return parse_study(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_study(content: Any) -> Study:
    """Build a study from the content of its file; a UserError names the field."""
    if not isinstance(content, dict):
        raise UserError(f"expected a mapping with name, encoders, benchmarks, …, got {content!r:.80}")
    fields = {name: value for name, value in to_plain(content).items() if value is not None}
    if "sweeps" in fields:  # a field of ``Study`` that is no key of study files
        raise UserError("unknown key 'sweeps'; did you mean 'sweep' in an entry?")
    for name in _ENTRIES:
        if isinstance(fields.get(name), dict):  # an empty entry means the defaults
            fields[name] = {key: {} if entry is None else entry for key, entry in fields[name].items()}
    for name in ("encoders", "llava_variants"):
        if isinstance(fields.get(name), dict):
            fields[name], sweeps = _expand_sweeps(fields[name], name)
            fields |= {"sweeps": sweeps} if name == "encoders" else {}
    return from_plain(Study, fields)


def _expand_sweeps(entries: Settings, where: str) -> tuple[dict[str, Any], dict[str, SweepPoint]]:
    """The entries with every sweep replaced by its combinations, and name → sweep point of these.

    partial: {sweep: {recipe.caption_strategy: [truncate, block], recipe.caption_tokens: [8, 16]}, recipe: {…}}
    becomes partial.truncate.8, partial.truncate.16, partial.block.8 and partial.block.16.
    """
    expanded: dict[str, Any] = {}
    points: dict[str, SweepPoint] = {}
    for name, entry in entries.items():
        created = {name: entry}
        if isinstance(entry, dict) and SWEEP in entry:
            created = {}
            for point in _combinations(entry[SWEEP], f"{where}.{name}.{SWEEP}"):
                settings = {key: value for key, value in entry.items() if key != SWEEP}
                for dotted, value in point.items():
                    nested: Any = value
                    for part in reversed(dotted.split(".")):
                        nested = {part: nested}
                    settings = deep_merge(settings, nested)
                full_name = ".".join([name, *map(_word, point.values())])
                created[full_name], points[full_name] = settings, SweepPoint(entry=name, settings=point)
        if duplicates := created.keys() & expanded.keys():
            raise UserError(f"{where}.{name}: its '{SWEEP}' makes {min(duplicates)}, which already exists")
        expanded |= created
    return expanded, points


def _combinations(axes: Any, where: str) -> list[dict[str, Any]]:
    """Dotted field → value for every combination of a ``sweep``."""
    if not isinstance(axes, Mapping) or not axes:
        raise UserError(
            f"{where}: expected a mapping from settings (such as recipe.caption_strategy) to lists of values"
        )
    for setting, values in axes.items():
        is_list = isinstance(values, list) and values and len(set(map(str, values))) == len(values)
        if not isinstance(setting, str) or not is_list:
            raise UserError(f"{where}.{setting}: expected a list of different values")
        for value in values:
            if not isinstance(value, str | int | float) or not _NAME_PART.fullmatch(_word(value)):
                raise UserError(f"{where}.{setting}: expected names or numbers, got {value!r:.80}")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _word(value: str | int | float) -> str:
    """A value as part of a name. Hyphens separate the parts of names, so that 2e-5 is written 0.00002."""
    if isinstance(value, str | bool):
        return str(value).lower() if isinstance(value, bool) else value
    if not math.isfinite(value):
        return "?"  # an invalid name
    return f"{Decimal(str(value)):f}".replace("-", "minus")


def deep_merge(defaults: Settings, overrides: Settings) -> dict[str, Any]:
    """``defaults`` updated with ``overrides``: mappings are merged recursively, all other values are replaced."""
    result = dict(defaults)
    for key, value in overrides.items():
        are_mappings = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = deep_merge(result[key], value) if are_mappings else value
    return result
