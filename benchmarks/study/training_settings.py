"""How a model was trained: read from the manifest in its directory, or from its study's step; and two such compared."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results.results import Result, enclosing_study
from benchmarks.study.step_state import CONFIG_FILE, find_producer, step_directory
from clips.core.artifact import MANIFEST, lexical_abspath, read_manifest
from clips.core.identity import is_below, run_only_fields
from clips.errors import UserError
from clips.training.train_config import EncoderTrainConfig as EncoderTrainConfig
from llava_bridge.training.train_config import STAGE_NAMES
from llava_bridge.training.train_config import LlavaTrainConfig as LlavaTrainConfig

_RUN_ONLY = run_only_fields(EncoderTrainConfig) | run_only_fields(LlavaTrainConfig)
_RUN_ONLY_OF_SOURCES = {name.partition("[].")[2] for name in _RUN_ONLY} | {"path"}
_AMOUNTS = {"max_steps": "steps", "max_samples": "samples", "num_epochs": "epochs"}
"""A length of a training as its config states it → as its manifest does, which knows how long it was."""
_OF_DATA = re.compile(r"(?:\w+\.)*data\.")  # whose max_samples is no length of a training
_MODELS = ("encoder", "llm", "llava")  # kinds of artifacts that are trained
_STAGE = rf"(?:{'|'.join(STAGE_NAMES)})\."
_MAIN = re.compile(rf"(?:\w+\.)?(?:recipe\.name|model\.architecture|projector\.type|encoder\w*|seed|{_STAGE}loss)")
# What one model must not have had more or better of than another, for the difference to be the method's: data, amount,
# batch, learning rates, precision, what it began with and which parts learned.
_WEIGHS = re.compile(
    rf"(?:(?:\w+|model\.\w+)\.)*?(?:{_STAGE})?"
    r"(?:data|data(?:\.sources)?(?:\.\d+)?\.(?:split|subset|max_samples|captions_per_image|weight)|steps|samples|global_batch_size|optimizer\.(?:base_)?learning_rate|(?:\w+_)?lr|learning_rate|precision|stages|tunable_parts|lora|llm|llava"
    r"|model\.pretrained|model\.pretrained_trunk|llm_from_scratch\.\w+)"
)
_MADE_FROM = re.compile(r"(?:encoder\w*|llm|llava|model\.\w+)\.")
CONFOUNDED_WARNING = "This may explain a difference between the numbers."
_BEGUN_WITH = ("pretrained", "pretrained_trunk", "architecture")
_OF_SOUP = re.compile(r"\d+(?= )")  # models that were averaged are numbered, before their names
_DIGITS = 12  # of a hash
_NOWHERE = "is no directory on this machine"


@dataclass(frozen=True, kw_only=True)
class TrainingSetting:
    """One thing that a model was trained with.

    Args:
        text: the value in words.
        hashes: of what it names; where two settings have them these decide whether they are the same, not the words.
        weighs: whether a comparison of models that differ in it is unfair.
    """

    text: str
    hashes: tuple[str, ...] = ()
    weighs: bool = False

    @property
    def shown(self) -> str:
        """The words, with the beginnings of the hashes."""
        return f"{self.text} ({', '.join(each[:_DIGITS] for each in self.hashes)})" if self.hashes else self.text

    def same(self, other: TrainingSetting) -> bool:
        """Whether both are one and the same."""
        if self.hashes and other.hashes:
            return self.hashes == other.hashes
        return self.text == other.text


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What is known of how a model was trained.

    Args:
        settings: dotted name, as in the config → value; those of the encoder or LLM that it was made from begin with
            ``encoder.`` and ``llm.``. How the run was carried out (output, workers, checkpoints, …) is left out.
        unknown: in words, of what nothing is known, and why.
    """

    settings: Mapping[str, TrainingSetting] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def main(self) -> dict[str, str]:
        """The settings of the model's own training that a reader looks for first, in words."""
        return {
            name: each.shown
            for name, each in self.settings.items()
            if is_headline_setting(name) and not _MADE_FROM.match(name) and each.text != _word(None)
        }


def is_confounder(name: str) -> bool:
    """Whether a comparison of models that differ in this setting is unfair."""
    return bool(_WEIGHS.fullmatch(name))


def is_headline_setting(name: str) -> bool:
    """Whether a setting is one that a reader looks for first."""
    return bool(_MAIN.fullmatch(name)) or is_confounder(name)


@dataclass(frozen=True, kw_only=True)
class TrainingDiff:
    """How two trainings differ.

    Args:
        differing: ``name: value against value``.
        same: how many settings are the same.
        one_sided: how many are stated of one of the two alone, and are not among the differing.
        uneven: of the differing those that make a comparison unfair: ``name value against value``.
        unknown: in words, of what nothing is known.
    """

    differing: tuple[str, ...]
    same: int
    one_sided: int
    uneven: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def rest(self) -> str:
        """How many settings are not shown, and why; empty where nothing is known."""
        if not self.differing and not self.same:
            return ""
        alone = f", {self.one_sided} more stated of one alone" if self.one_sided else ""
        return f"{'the other' if self.differing else 'all'} {self.same} settings are the same{alone}"

    @property
    def in_short(self) -> str:
        """What differs and what not, as part of a sentence; empty where nothing is known."""
        return "; ".join(
            [*(each.replace(": ", " ", 1) for each in self.differing), *([self.rest] if self.rest else [])]
        )

    @property
    def sentences(self) -> list[str]:
        """What differs, and of what nothing is known."""
        return [*([f"trained (A against B): {self.in_short}."] if self.in_short else []), *self.unknown]

    @property
    def warnings(self) -> list[str]:
        """The sentence that warns of an unfair comparison, where it is one."""
        if not self.uneven:
            return []
        return [f"Different training settings: {'; '.join(self.uneven)}. {CONFOUNDED_WARNING}"]


def diff_training(first: TrainingSettings, second: TrainingSettings) -> TrainingDiff:
    """What two trainings do not share."""
    sides = (("A", first), ("B", second))
    unknown = [f"Not known of {letter}: {why}." for letter, each in sides for why in each.unknown]
    one, two = first.settings, second.settings
    if not one or not two:
        return TrainingDiff(differing=(), same=0, one_sided=0, uneven=(), unknown=tuple(unknown))
    both = [name for name in one if name in two]
    unlike = [name for name in both if not one[name].same(two[name])]
    alone = [name for name in dict.fromkeys([*one, *two]) if (name in one) != (name in two)]
    told = [name for name in alone if is_headline_setting(name) and _of_both(name, one, two)]
    shown = {name: f"{_shown(one, name)} against {_shown(two, name)}" for name in [*unlike, *told]}
    return TrainingDiff(
        differing=tuple(f"{name}: {values}" for name, values in shown.items()),
        same=len(both) - len(unlike),
        one_sided=len(alone) - len(told),
        uneven=tuple(f"{name} {shown[name]}" for name in unlike if one[name].weighs or two[name].weighs),
        unknown=tuple(unknown),
    )


def _of_both(name: str, *sides: Mapping[str, TrainingSetting]) -> bool:
    """Whether of both sides something is known of what the setting is of: the model itself, its encoder, its LLM."""
    part = _MADE_FROM.match(name)
    return part is None or all(any(each.startswith(part[0]) for each in side) for side in sides)


def _shown(settings: Mapping[str, TrainingSetting], name: str) -> str:
    return settings[name].shown if name in settings else "not stated"


def training_of_result(result: Result) -> TrainingSettings:
    """How the model of a result was trained; nothing is said of a directory that holds another model by now."""
    study = enclosing_study(result.path) if result.path else Path.cwd()
    return _training(str(result.model.get("path") or ""), str(result.model.get("hash") or ""), study, frozenset())


def read_training(directory: Path) -> TrainingSettings:
    """How the model in a directory was trained."""
    return _training(str(directory), "", lexical_abspath(directory).parent.parent, frozenset())


def relocate(path: str, study: Path, digest: str = "") -> Path:
    """Where a recorded path is: as it was written, or in the study that its reader belongs to, which may have been
    moved, and whose paths may be relative to another folder than this one.

    Args:
        path: as recorded.
        study: the study's directory.
        digest: hash of what was there; a place with this one goes before others.
    """
    there = [place for place in _places(path, study) if place.exists()]
    told = (place for place in there if digest and _hash_of(place) == digest)
    return next(told, there[0] if there else Path(path))


def _places(path: str, study: Path) -> Iterator[Path]:
    written = Path(path)
    yield written
    yield from (study.joinpath(*written.parts[start:]) for start in range(1, len(written.parts) - 1))


def _hash_of(directory: Path) -> str:
    try:
        return str(read_manifest(directory).get("hash", ""))
    except UserError:
        return ""


def _training(path: str, digest: str, study: Path, seen: frozenset[str]) -> TrainingSettings:
    if not path:
        return _not_known("no directory is recorded")
    directory = relocate(path, study, digest)
    if not (directory / MANIFEST).is_file():
        if (told := _of_step(path, study)) is not None:
            return _read(told, study, seen | {path})
        return _not_known(f"{directory} {'has no manifest of this suite' if directory.is_dir() else _NOWHERE}")
    try:
        manifest = read_manifest(directory)
    except UserError as error:
        return _not_known(str(error))
    if digest and manifest.get("hash") != digest:
        return _not_known(f"{directory} holds another model by now")
    found = _read(manifest, study, seen | {path})
    return found if found.settings or found.unknown else _not_known(f"{directory / MANIFEST} does not tell")


def _not_known(why: str) -> TrainingSettings:
    return TrainingSettings(unknown=(f"how it was trained ({why})",))


def _of_step(path: str, study: Path) -> dict[str, Any] | None:
    """What the record of a study's step tells of a model whose directory is gone, as a manifest has it."""
    import yaml

    for place in _places(path, study):
        found = find_producer(place)
        if found is not None and found[1].kind in _MODELS:
            root, record = found
            with contextlib.suppress(yaml.YAMLError, OSError, UnicodeDecodeError):
                config = yaml.safe_load((step_directory(root, record.name) / CONFIG_FILE).read_text(encoding="utf-8"))
                return {"kind": record.kind, "config": config}
    return None


def _read(manifest: Mapping[str, Any], study: Path, seen: frozenset[str]) -> TrainingSettings:
    config = mapping(manifest.get("config"))
    settings = {
        _amount(name): TrainingSetting(text=_word(value)) for name, value in _flat(_without_idle_stages(config), "")
    }
    amounts = {name: TrainingSetting(text=f"{value:,}") for name, value in _amounts(manifest.get("stages"))}
    if amounts:
        settings = {name: each for name, each in settings.items() if name.rpartition(".")[2] not in _AMOUNTS.values()}
    settings |= amounts
    settings |= {
        name: TrainingSetting(text=_word(manifest[name])) for name in ("seed", "precision") if name in manifest
    }
    sources = _sources(mapping(manifest.get("data")), config)
    settings |= {name: _named(each) for name, each in sources.items()}
    for name, commit in mapping(manifest.get("data")).items():  # of what came from the Hub
        if isinstance(commit, str) and name in settings:
            settings[name] = dataclasses.replace(settings[name], hashes=(commit,))
    settings = {name: dataclasses.replace(each, weighs=is_confounder(name)) for name, each in settings.items()}
    data = {str(source.get("path")) for each in sources.values() for source in each}
    encoders: dict[str, TrainingSettings] = {}
    for name, parent in _parents(manifest, data):
        path, digest = str(parent.get("path", "")), str(parent.get("hash") or "")
        below = _training(path, digest, study, seen) if path not in seen else TrainingSettings()
        # a model of which more is known is weighed by its own settings: another seed alone is not unfair
        settings[name] = dataclasses.replace(_named([parent]), weighs=is_confounder(name) and not below.settings)
        settings |= {f"{name}.{each}": setting for each, setting in below.settings.items()}
        encoders |= {name: below} if name.startswith("encoder") else {}
    return TrainingSettings(settings=settings, unknown=tuple(_unknown_encoders(manifest, settings, encoders)))


def _unknown_encoders(
    manifest: Mapping[str, Any], settings: Mapping[str, TrainingSetting], followed: Mapping[str, TrainingSettings]
) -> Iterator[str]:
    for name, below in followed.items():
        yield from (f"how its {name} was trained ({why.partition('(')[2]}" for why in below.unknown)
    if manifest.get("kind") == "llava" and not followed and "encoder" in settings:
        named = settings["encoder"].text
        if named != _word(None):
            yield f"how its encoder was trained ({named} {_NOWHERE})"


def _parents(manifest: Mapping[str, Any], data: set[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the model began with, by the name of the setting that says so; data are told as data."""
    for name, parent in mapping(manifest.get("parents")).items():
        if isinstance(parent, Mapping) and str(parent.get("path")) not in data:
            number = _OF_SOUP.match(name)
            part = number[0] if number else name
            yield (f"model.{part}" if number or name in _BEGUN_WITH else name), parent


def _without_idle_stages(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of ``llava-bridge train`` without the stages that did not run, and without an LLM that was not made."""
    stages = config.get("stages")
    if not isinstance(stages, list) or not set(map(str, stages)) <= set(STAGE_NAMES):
        return dict(config)
    idle = set(STAGE_NAMES) - set(stages)
    idle |= set() if "llm_pretrain" in stages and not config.get("llm") else {"llm_from_scratch"}
    return {name: value for name, value in config.items() if name not in idle}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values, those that decide nothing left out; of a list of mappings each, numbered from 1."""
    if is_below(name, _RUN_ONLY):
        return
    below = f"{name}." if name else ""
    if isinstance(value, Mapping) and not name.endswith("lora"):
        for key, item in value.items():
            yield from _flat(item, f"{below}{key}")
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value, 1):
            where = name if len(value) == 1 else f"{below}{number}"
            yield from _flat({key: each for key, each in item.items() if key not in _RUN_ONLY_OF_SOURCES}, where)
    else:
        yield name, value


def _amount(name: str) -> str:
    """A setting's name; that of a training's length as the manifest of a trained model has it."""
    place, dot, field = name.rpartition(".")
    return name if _OF_DATA.match(name) else f"{place}{dot}{_AMOUNTS.get(field, field)}"


def _amounts(stages: Any) -> Iterator[tuple[str, int]]:
    """Steps and samples that were trained on: of each of a LLaVA's stages, of an encoder's together."""
    kinds = {"steps": "steps", "samples_seen": "samples"}
    if isinstance(stages, list):
        found = [mapping(stage) for stage in stages]
        for key, name in kinds.items():
            counts = [stage.get(key) for stage in found]
            if counts and all(isinstance(count, int) for count in counts):
                yield name, sum(count for count in counts if isinstance(count, int))
    for stage, done in mapping(stages).items():
        for key, name in kinds.items():
            if isinstance(count := mapping(done).get(key), int):
                yield f"{stage}.{name}", count


def _sources(data: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """What was trained on: ``data`` of an encoder, ``align.data`` of a LLaVA; as the config has it, where only that is
    known."""
    told = {"data" if name == "sources" else f"{name}.data": each for name, each in data.items()}
    if not told:
        told = {"data": mapping(config.get("data")).get("sources")}
        told |= {f"{stage}.data": mapping(config.get(stage)).get("data") for stage in STAGE_NAMES}
    lists = {name: [each for each in found if isinstance(each, Mapping)] for name, found in told.items()
             if isinstance(found, list)}  # fmt: skip
    return {name: found for name, found in lists.items() if found}


def _named(described: list[Mapping[str, Any]]) -> TrainingSetting:
    """A setting that names data or models: by path and, where each is known, hash."""
    hashes = [str(each.get("hash") or "") for each in described]
    text = ", ".join(str(each.get("path", "not stated")) for each in described)
    return TrainingSetting(text=text, hashes=tuple(hashes) if all(hashes) else ())


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_word(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_word, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """A part of a manifest that should be an object; empty where it is something else."""
    return value if isinstance(value, Mapping) else {}
