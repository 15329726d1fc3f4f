"""The study file: what is compared, as frozen dataclasses (``reading`` reads it).

    name: demo
    baseline: clip
    data:       {train: {...}, test: {...}}         # made by `clips scenes`, into <output>/data/<name>
    defaults:   {encoder: {...}, llm: {...}, llava: {...}, benchmark: {...}, evaluation: {...}}
    encoders:
      clip:         {recipe: {name: clip}}          # a mapping: trained here, laid over defaults.encoder
      efficientnet: "timm:efficientnet_lite0"       # a text: pretrained, from anywhere
      sized: {sweep: {global_batch_size: [64, 128]}}        # several: sized.64 and sized.128, see ``grid``
    llms:
      tiny:     {}                                  # likewise: trained here, over defaults.llm
      stories:  path/to/any/transformers/llm
    llava_variants:                                 # ways to train a LLaVA, laid over defaults.llava; may be left out
      mlp:      {}
      pooled:   {projector: {type: pool}}
    existing_llavas:                                # rows of LLaVAs that are there already
      theirs:   path/to/a/llava
      other:    {lmms: {model: llava_hf, model_args: "pretrained=path/to/it"}}
    benchmarks: {retrieval: {data: $data/test}, pope: {}}

    executor: slurm                               # where steps run, see ``executors``
    resources: {encoder: {processes: 8}}          # what they run on, see ``resources``

A value that begins with ``$`` is a path inside the study's output, and the step that makes it runs before; or
it is a path below an entry of ``paths``. Encoders × LLMs × LLaVA variants × seeds are the rows, after them the
existing LLaVAs; benchmarks are the columns.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results.reference_results.load import select_reference_results
from benchmarks.study.executors import ExecutorConfig, LocalConfig
from benchmarks.study.resources import Resources
from benchmarks.study.sweep import FigureSpec, Settings, SweepPoint
from clips.errors import UserError, unknown_name_error
from clips.planning.hardware import GPUS
from clips.typed_data import from_plain

_OWN_FOLDERS = {"data", "encoders", "llms", "llava", "results", "steps", "report", "trash"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]{0,59}")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What all rows share. Every entry is laid under the settings of the single encoder, LLM or benchmark.

    Args:
        encoder: fields of ``clips train``.
        llm: fields of ``llava-bridge train`` for LLMs trained here.
        llava: fields of ``llava-bridge train`` for every row's LLaVA.
        benchmark: fields of every benchmark (``benchmarks`` in ``clips-bench run``).
        evaluation: the other fields of ``clips-bench run``.
    """

    encoder: Settings = field(default_factory=dict)
    llm: Settings = field(default_factory=dict)
    llava: Settings = field(default_factory=dict)
    benchmark: Settings = field(default_factory=dict)
    evaluation: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Override:
    """An exception for some rows: those that match every name given.

    Args:
        encoder: rows with this encoder, of this entry, or of a pattern (``photos.*``); all where None.
        llm: rows with this LLM, or of a pattern.
        llava_variant: rows with this variant, or of a pattern.
        seed: rows with this seed.
        exclude: leave these rows out.
        llava: laid over ``defaults.llava`` for these rows.
        evaluation: laid over ``defaults.evaluation`` for these rows: batch_size, precision, device, overwrite. An
            encoder is evaluated once for all its LLaVAs, so that a rule for an LLM or a variant is not for its own
            benchmarks; nor is one for a seed, of an encoder that is not trained here.
    """

    encoder: str | None = None
    llm: str | None = None
    llava_variant: str | None = None
    seed: int | None = None
    exclude: bool = False
    llava: Settings = field(default_factory=dict)
    evaluation: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What one row is made of; ``llm`` is None in a study without LLMs, ``llava_variant`` in one that names none."""

    encoder: str
    llm: str | None
    llava_variant: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison.

    Args:
        name: of the study; its output goes to ``runs/<name>``.
        title: of the report; the name where empty.
        question: that the study answers, in words, for the report.
        notes: what a reader must know about the data and the set-up, one line each.
        output: another place for the output.
        baseline: the encoder (or LLaVA of ``existing_llavas``) that the others are compared with; or a mapping from
            encoders, entries or patterns (``photos.*``) to theirs, the first that fits.
        jobs: steps that run at the same time.
        threads: threads of each step; the cores divided by ``jobs`` where not given.
        confirm_hours: steps that took longer are made again only with ``--yes``.
        executor: where steps run, see ``executors``.
        gpu: kind of GPU that ``study plan`` reckons with, see ``clips.planning.hardware``.
        resources: kind of step, or pattern of step names → fields of ``resources.Resources``.
        seeds: every encoder and LLaVA is trained once with each.
        paths: name → directory outside the study, for ``$name/…``.
        data: name → settings of the command that makes it, ``clips scenes`` unless ``command`` says otherwise.
        defaults: what all rows share.
        encoders: name → settings of ``clips train``, or a text: where a pretrained one is.
        llms: name → settings of ``llava-bridge train``, or a text: where a pretrained one is. None: no LLaVAs.
        llava_variants: name → settings of ``llava-bridge train``, laid over ``defaults.llava``: each encoder is plugged
            into each LLM in each variant.
        existing_llavas: rows of LLaVAs that are there already: name → a directory or name on the Hub, or settings of
            ``clips-bench run`` with ``llava`` or ``lmms``, laid over ``defaults.evaluation``.
        overrides: exceptions for some rows.
        benchmarks: column → settings of the benchmark; ``encoders`` among them: for these encoders,
            LLaVAs, entries or patterns only.
        figures: of the report, see ``FigureSpec``.
        reference_results: rows that others have printed, shown beside the report's table (``clips``,
            ``openclip:NAME``).
        include: encoders, LLaVAs, entries or patterns that are compared; all where empty.
        sweeps: the encoders that an entry with ``sweep`` stands for (they are among ``encoders``).
    """

    name: str
    title: str = ""
    question: str = ""
    notes: tuple[str, ...] = ()
    output: str | None = None
    baseline: str | Mapping[str, str] | None = None
    jobs: int = 1
    threads: int | None = None
    confirm_hours: float = 1.0
    executor: ExecutorConfig = field(default_factory=LocalConfig)
    resources: Mapping[str, Settings] = field(default_factory=dict)
    gpu: str | None = None
    seeds: tuple[int, ...] = (0,)
    paths: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Settings] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    encoders: Mapping[str, Settings | str] = field(default_factory=dict)
    llms: Mapping[str, Settings | str] = field(default_factory=dict)
    llava_variants: Mapping[str, Settings] = field(default_factory=dict)
    existing_llavas: Mapping[str, Settings | str] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    benchmarks: Mapping[str, Settings] = field(default_factory=dict)
    figures: tuple[FigureSpec, ...] = ()
    reference_results: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    sweeps: Mapping[str, SweepPoint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in ("paths", "data", "encoders", "llms", "llava_variants", "existing_llavas"):
            for name in getattr(self, what):
                _check_name(name, f"{what}.{name}")
        _check_name(self.name, "name")
        for name in _OWN_FOLDERS.intersection(self.paths):
            raise UserError(f"paths.{name}: this name means a folder of the study's own; choose another")
        if not self.models:
            raise UserError("encoders: expected at least one, or one of 'existing_llavas'")
        if self.llava_variants and not self.llms:
            raise UserError("llava_variants: expected none without 'llms', for they say how LLaVAs are trained")
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
        if self.gpu is not None and self.gpu not in GPUS:
            raise unknown_name_error(self.gpu, GPUS, "kind of GPU")
        if self.jobs < 1:
            raise UserError(f"jobs: expected at least 1, got {self.jobs}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads: expected at least 1, got {self.threads}")
        if not self.confirm_hours >= 0:
            raise UserError(f"confirm_hours: expected a number from 0 on, got {self.confirm_hours}")
        for name, settings in self.resources.items():
            from_plain(Resources, settings, what=f"resources.{name}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds: expected different whole numbers from 0 on, got {list(self.seeds)}")
        for override in self.overrides:
            if override.encoder is not None:
                self._check_encoder(override.encoder, "overrides", [*self.encoders])
            for what, known in (("llm", self.llms), ("llava_variant", self.llava_variants)):
                name = getattr(override, what)
                if name is not None and not fnmatch.filter(known, name):
                    raise unknown_name_error(name, known, f"{what} in 'overrides'")
        for name, settings in self.benchmarks.items():
            asked = settings.get("encoders") or []
            if not isinstance(asked, list) or not all(isinstance(each, str) for each in asked):
                raise UserError(f"benchmarks.{name}.encoders: expected a list, each item a name, got {asked!r:.80}")
            for each in asked:
                self._check_encoder(each, f"benchmarks.{name}.encoders")
        for number, figure in enumerate(self.figures, 1):
            self._check_figure(figure, f"figures[{number}]")

    def _check_encoder(self, name: str, where: str, among: Sequence[str] | None = None) -> None:
        """Refuse what means none of some models, of all where not given."""
        known = self.models if among is None else among
        if not any(self.means(name, model) for model in known):
            raise unknown_name_error(name, [*known, *self.entries], f"encoder in '{where}'")

    def _check_figure(self, figure: FigureSpec, where: str) -> None:
        if figure.benchmark not in self.benchmarks:
            raise unknown_name_error(figure.benchmark, self.benchmarks, f"benchmark in '{where}.benchmark'")
        if figure.encoders not in self.entries:
            raise unknown_name_error(figure.encoders, self.entries, f"entry with 'sweep' in '{where}.encoders'")
        settings = next(varied.settings for varied in self.sweeps.values() if varied.entry == figure.encoders)
        if figure.x not in settings:
            raise unknown_name_error(figure.x, settings, f"setting in '{where}.x'")
        if isinstance(settings[figure.x], str):
            raise UserError(f"{where}.x: expected a setting whose values are numbers, got '{figure.x}'")
        for name in figure.reference_lines:
            self._check_encoder(name, f"{where}.reference_lines")

    @property
    def models(self) -> list[str]:
        """Names of all that is compared: encoders, and LLaVAs that are there already."""
        return [*self.encoders, *self.existing_llavas]

    @property
    def entries(self) -> list[str]:
        """Names of the entries with ``sweep``."""
        return list(dict.fromkeys(varied.entry for varied in self.sweeps.values()))

    def means(self, name: str, encoder: str) -> bool:
        """Whether ``name`` is an encoder's, or its entry's, or a pattern such as ``photos.*`` that fits it."""
        varied = self.sweeps.get(encoder)
        return fnmatch.fnmatchcase(encoder, name) or (varied is not None and varied.entry == name)

    def applies(self, override: Override, row: Combination) -> bool:
        """Whether a row is meant by an exception."""
        return (
            (override.encoder is None or self.means(override.encoder, row.encoder))
            and (override.llm is None or fnmatch.fnmatchcase(row.llm or "", override.llm))
            and (override.llava_variant is None or fnmatch.fnmatchcase(row.llava_variant or "", override.llava_variant))
            and override.seed in {None, row.seed}
        )

    def combinations(self) -> list[Combination]:
        """Encoders × LLMs × LLaVA variants × seeds, but for those left out, in the order of the table."""
        every = (
            Combination(encoder=encoder, llm=llm, llava_variant=recipe, seed=seed)
            for llm in (self.llms or (None,))
            for recipe in (self.llava_variants or (None,))
            for seed in self.seeds
            for encoder in self.encoders
            if self.compares(encoder)
        )
        return [row for row in every if not any(rule.exclude and self.applies(rule, row) for rule in self.overrides)]

    def label(self, row: Combination) -> str:
        """What a row is called in the table: the encoder, and of the rest what the study varies."""
        with_llm = f" + {row.llm}" if len(self.llms) > 1 else ""
        with_recipe = f" by {row.llava_variant}" if len(self.llava_variants) > 1 else ""
        with_seed = f" (seed {row.seed})" if len(self.seeds) > 1 else ""
        return f"{row.encoder}{with_llm}{with_recipe}{with_seed}"

    def baseline_of(self, encoder: str) -> str | None:
        """The encoder or LLaVA that one is compared with; None for a baseline itself."""
        if isinstance(self.baseline, Mapping):
            found = next((base for name, base in self.baseline.items() if self.means(name, encoder)), None)
        else:
            found = self.baseline
        return None if found == encoder else found

    def compares(self, encoder: str) -> bool:
        """Whether an encoder is among those compared."""
        return not self.include or any(self.means(name, encoder) for name in self.include)

    def asks(self, benchmark: str, encoder: str) -> bool:
        """Whether a benchmark is for an encoder: all are, unless it names some."""
        wanted = self.benchmarks[benchmark].get("encoders")
        return wanted is None or any(self.means(name, encoder) for name in wanted)

    @property
    def directory(self) -> Path:
        """Where everything that the study makes lies."""
        return Path(self.output or f"runs/{self.name}")


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: expected a name of up to 60 letters, digits, '_' and '.', got '{name:.250}'")
