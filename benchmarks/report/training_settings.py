"""The training settings of a model, from its manifest or its study's step; and the comparison of two trainings."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results.protocol import name_one_sided
from benchmarks.results.results import Result, enclosing_study
from benchmarks.study.state import CONFIG_FILE, find_producer, step_directory
from benchmarks.study.step_kinds import STEP_KINDS
from clips.core.artifact import MANIFEST, read_manifest
from clips.core.identity import is_below, run_only_fields
from clips.errors import UserError
from clips.training.train_config import EncoderTrainConfig
from clips.typed_data import with_defaults
from llava_bridge.training.train_config import STAGE_NAMES, LlavaTrainConfig

_TRAININGS: dict[str, type] = {"encoder": EncoderTrainConfig, "llava": LlavaTrainConfig}
_RUN_ONLY = frozenset[str]().union(*map(run_only_fields, _TRAININGS.values()))
_RUN_ONLY_OF_SOURCES = {name.partition("[].")[2] for name in _RUN_ONLY} | {"path"}
_AMOUNTS = {"max_steps": "steps", "max_samples": "samples", "num_epochs": "epochs"}
"""Length of a training: field of the config → field of the manifest, which has the actual length."""
_DATA_FIELD = re.compile(r"(?:\w+\.)*data\.")  # its max_samples is not the length of a training
_STAGE = rf"(?:{'|'.join(STAGE_NAMES)})\."
# the most informative settings, which are printed although only one side states them
_HEADLINE = re.compile(rf"(?:\w+\.)?(?:recipe\.name|model\.architecture|projector\.type|encoder\w*|seed|{_STAGE}loss)")
# Settings that must be equal for a difference of scores to be an effect of the method: data, amount, batch size,
# learning rates, precision, initial weights and trainable parts.
_CONFOUNDER = re.compile(
    rf"(?:(?:\w+|model\.\w+)\.)*?(?:{_STAGE})?"
    r"(?:data|data(?:\.sources)?(?:\.\d+)?\.(?:split|subset|max_samples|captions_per_image|weight)|steps|samples|global_batch_size|optimizer\.(?:base_)?learning_rate|(?:\w+_)?lr|learning_rate|precision|stages|tunable_parts|lora|llm|llava"
    r"|model\.pretrained|model\.pretrained_trunk)"
)
_PARENT_PREFIX = re.compile(r"(?:(?:encoder\w*|llm|llava|model\.\w+)\.)+")
_INITIAL_WEIGHTS = ("pretrained", "pretrained_trunk", "architecture")
_HASH_DIGITS = 12
_NOT_FOUND = "is no directory on this machine"


@dataclass(frozen=True, kw_only=True)
class TrainingSetting:
    """One training setting.

    Args:
        text: the value as text.
        hashes: of the data or models that it names; compared instead of the text if both settings have hashes.
        is_confounder: whether models that differ in it cannot be compared fairly.
    """

    text: str
    hashes: tuple[str, ...] = ()
    is_confounder: bool = False

    def describe(self) -> str:
        """The text with the beginnings of the hashes."""
        return f"{self.text} ({', '.join(each[:_HASH_DIGITS] for each in self.hashes)})" if self.hashes else self.text

    def equals(self, other: TrainingSetting) -> bool:
        """Whether the hashes are equal, or the texts if one has no hashes."""
        if self.hashes and other.hashes:
            return self.hashes == other.hashes
        return self.text == other.text


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The known training settings of a model.

    Args:
        settings: dotted name, as in the config → value; those of its encoder and LLM begin with ``encoder.`` and
            ``llm.``. Settings without an effect on the result (output, workers, checkpoints, …) are excluded.
        unknown: the models whose training is unknown, with reasons.
    """

    settings: Mapping[str, TrainingSetting] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def is_confounder(name: str) -> bool:
    """Whether models that differ in this setting cannot be compared fairly."""
    return bool(_CONFOUNDER.fullmatch(name))


@dataclass(frozen=True, kw_only=True)
class TrainingDiff:
    """The differences between two trainings.

    Args:
        differing: ``name: value against value``.
        same: number of equal settings.
        one_sided: number of settings that only one of the two has and that are not among ``differing``.
        uneven: the confounders among ``differing``: ``name value against value``.
        unknown: the models whose training is unknown, with reasons.
    """

    differing: tuple[str, ...]
    same: int
    one_sided: int
    uneven: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def rest(self) -> str:
        """The number of settings that are not in ``differing``; empty if none is known."""
        if not self.differing and not self.same:
            return ""
        same = f"{'the other' if self.differing else 'all'} {self.same} settings are the same" if self.same else ""
        alone = f"{self.one_sided} are known of one training only" if self.one_sided else ""
        return ", ".join(filter(None, [same, alone]))

    @property
    def in_short(self) -> str:
        """The differences and the number of the other settings; empty if none is known."""
        differing = (each.replace(": ", " ", 1) for each in name_one_sided(self.differing))
        return "; ".join(filter(None, [*differing, self.rest]))

    @property
    def sentences(self) -> list[str]:
        """The differences and the unknown trainings."""
        return [*([f"trained (A against B): {self.in_short}."] if self.in_short else []), *self.unknown]


def diff_training(first: TrainingSettings, second: TrainingSettings) -> TrainingDiff:
    """The differences between two trainings."""
    sides = (("A", first), ("B", second))
    unknown = [f"Not known of {letter}: {why}." for letter, each in sides for why in each.unknown]
    one, two = first.settings, second.settings
    if not one or not two:
        return TrainingDiff(differing=(), same=0, one_sided=0, uneven=(), unknown=tuple(unknown))
    both = [name for name in one if name in two]
    different = [name for name in both if not one[name].equals(two[name])]
    alone = [name for name in dict.fromkeys([*one, *two]) if (name in one) != (name in two)]
    printed = []
    for name in alone:  # if both have settings of the model that it belongs to: the model itself, its encoder, …
        prefix = _PARENT_PREFIX.match(name)
        known = prefix is None or all(any(each.startswith(prefix[0]) for each in side) for side in (one, two))
        printed += [name] if known and (_HEADLINE.fullmatch(name) or is_confounder(name)) else []
    values = {name: " against ".join(each[name].describe() if name in each else "not stated" for each in (one, two))
              for name in [*different, *printed]}  # fmt: skip
    confounders = [name for name in different if one[name].is_confounder or two[name].is_confounder]
    return TrainingDiff(
        differing=tuple(f"{name}: {pair}" for name, pair in values.items()),
        same=len(both) - len(different),
        one_sided=len(alone) - len(printed),
        uneven=tuple(f"{name} {values[name]}" for name in confounders),
        unknown=tuple(unknown),
    )


def training_of_result(result: Result) -> TrainingSettings:
    """The training of the model of a result; unknown if its directory contains another model by now."""
    study = enclosing_study(result.path) if result.path else Path.cwd()
    return _training(str(result.model.get("path") or ""), str(result.model.get("hash") or ""), study, frozenset())


def relocate(path: str, study: Path, digest: str = "") -> Path:
    """The current location of a recorded path: unchanged, or in a study that was moved or is addressed differently.

    Of several locations, one with the hash ``digest`` is preferred.
    """
    existing = [candidate for candidate in _candidates(path, study) if candidate.exists()]
    for candidate in existing if digest else ():
        with contextlib.suppress(UserError):
            if read_manifest(candidate).get("hash") == digest:
                return candidate
    return existing[0] if existing else Path(path)


def _candidates(path: str, study: Path) -> Iterator[Path]:
    recorded = Path(path)
    yield recorded
    yield from (study.joinpath(*recorded.parts[start:]) for start in range(1, len(recorded.parts) - 1))


def _training(path: str, digest: str, study: Path, seen: frozenset[str]) -> TrainingSettings:
    if not path:
        return _unknown("no directory is recorded")
    directory = relocate(path, study, digest)
    if not (directory / MANIFEST).is_file():
        if (manifest := _manifest_of_step(path, study)) is not None:
            return _read(manifest, study, seen | {path})
        return _unknown(f"{directory} {'has no manifest of this suite' if directory.is_dir() else _NOT_FOUND}")
    try:
        manifest = read_manifest(directory)
    except UserError as error:
        return _unknown(str(error))
    if digest and manifest.get("hash") != digest:
        return _unknown(f"{directory} contains another model by now")
    settings = _read(manifest, study, seen | {path})
    return settings if settings.settings or settings.unknown else _unknown(f"{directory / MANIFEST} has no settings")


def _unknown(reason: str) -> TrainingSettings:
    return TrainingSettings(unknown=(f"how it was trained ({reason})",))


def _manifest_of_step(path: str, study: Path) -> dict[str, Any] | None:
    """The known part of the manifest of a deleted model, from the record of its study's step."""
    import yaml

    for candidate in _candidates(path, study):
        producer = find_producer(candidate)
        if producer is not None and producer[1].kind in STEP_KINDS and STEP_KINDS[producer[1].kind].trains:
            root, record = producer
            with contextlib.suppress(yaml.YAMLError, OSError, UnicodeDecodeError):
                config = yaml.safe_load((step_directory(root, record.name) / CONFIG_FILE).read_text(encoding="utf-8"))
                return {"kind": record.kind, "config": config}
    return None


def _read(manifest: Mapping[str, Any], study: Path, seen: frozenset[str]) -> TrainingSettings:
    config = mapping(manifest.get("config"))
    if "identity" in manifest and (trained := _TRAININGS.get(str(manifest.get("kind")))):
        config = with_defaults(config, trained)  # of fields that are newer than the training
    stages, used = config.get("stages"), dict(config)
    if isinstance(stages, list) and set(map(str, stages)) <= set(STAGE_NAMES):  # settings of others have no effect
        used = {name: value for name, value in config.items() if name not in set(STAGE_NAMES) - set(stages)}
    settings = {}
    for name, value in _flat(used, ""):
        if not _DATA_FIELD.match(name):  # the length of a training has the manifest's name
            parent, dot, field = name.rpartition(".")
            name = f"{parent}{dot}{_AMOUNTS.get(field, field)}"
        settings[name] = TrainingSetting(text=_format_value(value))
    amounts = {name: TrainingSetting(text=f"{value:,}") for name, value in _amounts(manifest.get("stages"))}
    if amounts:
        settings = {name: each for name, each in settings.items() if name.rpartition(".")[2] not in _AMOUNTS.values()}
    settings |= amounts
    for name in ("seed", "precision"):
        if name in manifest:
            settings[name] = TrainingSetting(text=_format_value(manifest[name]))
    sources = _sources(mapping(manifest.get("data")), config)
    settings |= {name: _named(each) for name, each in sources.items()}
    for name, commit in mapping(manifest.get("data")).items():  # of data from the Hub
        if isinstance(commit, str) and name in settings:
            settings[name] = dataclasses.replace(settings[name], hashes=(commit,))
    settings = {name: dataclasses.replace(each, is_confounder=is_confounder(name)) for name, each in settings.items()}
    data = {str(source.get("path")) for each in sources.values() for source in each}
    encoders: dict[str, TrainingSettings] = {}
    for kind, parent in mapping(manifest.get("parents")).items():
        if not isinstance(parent, Mapping) or str(parent.get("path")) in data:
            continue
        name = f"model.{kind}" if kind in _INITIAL_WEIGHTS else kind
        path, digest = str(parent.get("path", "")), str(parent.get("hash") or "")
        training = _training(path, digest, study, seen) if path not in seen else TrainingSettings()
        # If an encoder's training is known, its own settings are the confounders: another seed alone is fair.
        confounds = is_confounder(name) and (name == "llm" or not training.settings)
        settings[name] = dataclasses.replace(_named([parent]), is_confounder=confounds)
        # A training or swap that begins with a LLaVA has those of its parts that it does not replace.
        parts = tuple(part for part in ("encoder", "llm") if name == "llava" and config.get(part) is None)
        settings = {each: setting for each, setting in settings.items() if each not in parts}
        for each, setting in training.settings.items():
            settings[each if each.startswith(parts) else f"{name}.{each}"] = setting
        encoders |= {name: training} if name.startswith("encoder") or "encoder" in parts else {}
    unknown = [
        reason if name == "llava" and training.settings else f"how its {name} was trained ({reason.partition('(')[2]}"
        for name, training in encoders.items()
        for reason in training.unknown
    ]
    if manifest.get("kind") == "llava" and not encoders and "encoder" in settings:
        encoder = settings["encoder"].text
        if encoder != _format_value(None):
            unknown.append(f"how its encoder was trained ({encoder} {_NOT_FOUND})")
    return TrainingSettings(settings=settings, unknown=tuple(unknown))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of settings with an effect on the result; lists of mappings are numbered from 1."""
    if is_below(name, _RUN_ONLY):
        return
    prefix = f"{name}." if name else ""
    if isinstance(value, Mapping) and not name.endswith("lora"):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}{key}")
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value, 1):
            where = name if len(value) == 1 else f"{prefix}{number}"
            yield from _flat({key: each for key, each in item.items() if key not in _RUN_ONLY_OF_SOURCES}, where)
    else:
        yield name, value


def _amounts(stages: Any) -> Iterator[tuple[str, int]]:
    """Steps and samples of the training: of each stage of a LLaVA, summed over the stages of an encoder."""
    keys = {"steps": "steps", "samples_seen": "samples"}
    if isinstance(stages, list):
        for key, name in keys.items():
            counts = [mapping(stage).get(key) for stage in stages]
            if counts and all(isinstance(count, int) for count in counts):
                yield name, sum(count for count in counts if isinstance(count, int))
    for stage, state in mapping(stages).items():
        for key, name in keys.items():
            if isinstance(count := mapping(state).get(key), int):
                yield f"{stage}.{name}", count


def _sources(data: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The training data (``data`` of an encoder, ``align.data`` of a LLaVA), from the manifest or else the config."""
    sources = {"data" if name == "sources" else f"{name}.data": each for name, each in data.items()}
    if not sources:
        sources = {"data": mapping(config.get("data")).get("sources")}
        sources |= {f"{stage}.data": mapping(config.get(stage)).get("data") for stage in STAGE_NAMES}
    lists = {name: [each for each in listed if isinstance(each, Mapping)] for name, listed in sources.items()
             if isinstance(listed, list)}  # fmt: skip
    return {name: listed for name, listed in lists.items() if listed}


def _named(references: list[Mapping[str, Any]]) -> TrainingSetting:
    """A setting that names data or models, by path and, if all are known, hash."""
    hashes = [str(each.get("hash") or "") for each in references]
    text = ", ".join(str(each.get("path", "not stated")) for each in references)
    return TrainingSetting(text=text, hashes=tuple(hashes) if all(hashes) else ())


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_value(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_format_value, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """A part of a manifest that should be an object; empty if it has another type."""
    return value if isinstance(value, Mapping) else {}
