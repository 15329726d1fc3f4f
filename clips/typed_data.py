"""Dataclasses from plain data and back: the one place where configs, study files and result files are checked."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from clips.errors import UserError, error_reason
from clips.text_files import dump_yaml

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def to_plain(value: Any) -> Any:
    """``value`` with dataclasses as dicts, tuples as lists and paths as strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def with_defaults(values: Any, kind: Any) -> Any:
    """Plain data of a dataclass with the defaults of the fields that it lacks, also in nested ones and lists of them.

    Data that do not fit the type are returned as they are.
    """
    options = [option for option in options_of(kind) if is_config(option)]
    if isinstance(values, Mapping) and options:
        hints = typing.get_type_hints(options[0], include_extras=True)
        completed = {name: with_defaults(value, hints.get(name, Any)) for name, value in values.items()}
        return {**_plain_defaults(options[0]), **completed}
    inner = [part for option in options_of(kind) for part in typing.get_args(option)]
    if isinstance(values, Mapping) and len(inner) == 2:
        return {name: with_defaults(value, inner[1]) for name, value in values.items()}
    if isinstance(values, list | tuple) and inner:
        return [with_defaults(value, inner[0]) for value in values]
    return values


def changed_settings(config: Any) -> Any:
    """A config dataclass as plain data, without the fields that have their default."""
    if isinstance(config, list | tuple):
        return [changed_settings(item) for item in config]
    if not is_config(type(config)):
        return to_plain(config)
    defaults, missing = _plain_defaults(type(config)), object()
    return {
        field.name: changed_settings(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if to_plain(getattr(config, field.name)) != defaults.get(field.name, missing)
    }


def _plain_defaults(kind: type) -> dict[str, Any]:
    defaults = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = to_plain(field.default_factory())
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = to_plain(field.default)
    return defaults


def to_yaml(config: Any) -> str:
    """A config dataclass as the YAML text that ``--config`` reads back."""
    return dump_yaml(to_plain(config))


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested plain data."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain data from dotted names, the inverse of `flatten`; a name below that of a value is left out."""
    nested: dict[str, Any] = {}
    for name, value in sorted(flat.items()):
        *sections, last = name.split(".")
        place: Any = nested
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    return nested


Record = TypeVar("Record")
_NAMES_ELSEWHERE = {  # settings of open_clip, LLaVA and transformers' Trainer → ours
    "accum_freq": "micro_batch_size",
    "batch_size": "global_batch_size",
    "beta2": "adam_beta2",
    "data_path": "data",
    "dtype": "precision",
    "epochs": "num_epochs",
    "force_image_size": "image_size",
    "gpus": "num_gpus",
    "grad_clip_norm": "max_grad_norm",
    "gradient_accumulation_steps": "micro_batch_size",
    "image_folder": "image_root",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "mm_vision_select_layer": "vision_feature_layer",
    "model_max_length": "max_length",
    "model_name_or_path": "llm",
    "nnodes": "nodes",
    "nproc": "processes",
    "nproc_per_node": "processes",
    "num_gpus": "gpus",
    "num_nodes": "nodes",
    "num_processes": "processes",
    "num_train_epochs": "num_epochs",
    "output_dir": "output",
    "per_device_train_batch_size": "micro_batch_size",
    "train_data": "sources",
    "train_num_samples": "max_samples",
    "vision_tower": "encoder",
    "wd": "weight_decay",
    "workers": "num_workers",
}
_NO_SETTING = {  # of other trainers, and what there is instead
    "device": "a GPU is used if torch finds one",
    "resources": "it is a key of study files",
    **dict.fromkeys(
        ["gpus", "nnodes", "nodes", "nproc", "nproc_per_node", "num_gpus", "num_nodes", "num_processes", "processes"],
        "torchrun or deepspeed starts several processes; for a study, set 'resources' in its file",
    ),
}
_UNKNOWN_KEY = {"extra_forbidden", "unexpected_keyword_argument"}  # pydantic's types of errors
_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null", Any: "any"}


def from_plain(kind: type[Record], values: Any, *, what: str = "") -> Record:
    """Build a dataclass from plain data.

    Args:
        kind: the dataclass.
        values: field → value, nested plain data.
        what: the command, file or key that the values are from, for messages.

    Raises:
        UserError: an unknown key (with the close match), a wrong type, a missing field, or a UserError of the class.
    """
    from pydantic import ValidationError

    try:
        if not isinstance(values, Mapping):
            raise UserError(f"expected a mapping of field names to values, got {values!r:.80}")
        try:
            content = to_plain(values)
            text = json.dumps(content)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"expected plain values ({error_reason(error)})") from None
        # From JSON, pydantic accepts lists as tuples and mappings as dataclasses also in strict mode.
        return adapter(typing.cast(Any, kind)).validate_json(text, strict=True)
    except ValidationError as error:
        problem = _problem(error.errors(include_url=False), kind, content)
    except UserError as error:
        problem = str(error)
    raise UserError(f"{what}: {problem}" if what else problem)


def checked(config: Record) -> Record:
    """The same config, its types and ranges checked: one made in Python has passed no command.

    Raises:
        UserError: a value that its field's type excludes.
    """
    return from_plain(type(config), to_plain(config))


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's validator of a dataclass, which rejects unknown keys."""
    from pydantic import ConfigDict, TypeAdapter, with_config

    for each in _dataclasses(kind):
        with_config(ConfigDict(extra="forbid"))(each)
    return TypeAdapter(kind)


def _dataclasses(kind: Any) -> Iterator[type]:
    for each in (kind, *typing.get_args(kind)):
        if is_config(each):
            yield each
            for inner in typing.get_type_hints(each).values():
                yield from _dataclasses(inner)
        elif each is not kind:
            yield from _dataclasses(each)


def is_config(kind: Any) -> bool:
    """Whether a type is a dataclass."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _texts(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of plain values; the text of a key is that of its own name."""
    if isinstance(content, str):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield f"{name}.{key}".lstrip(".").encode(errors="backslashreplace").decode(), str(key)
            yield from _texts(value, f"{name}.{key}".lstrip("."))
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from _texts(value, f"{name}[{place + 1}]")  # as `_spot` names it


def _problem(errors: Sequence[Any], kind: Any, content: Any) -> str:
    """One line about one of pydantic's errors: an unknown key first, because it may be a misspelled missing one."""

    def rank(error: Any) -> tuple[bool, bool, bool]:
        is_unknown, is_missing = error["type"] in _UNKNOWN_KEY, error["type"] == "missing"
        _, value, expected = _spot(kind, error["loc"][:-1] if is_unknown or is_missing else error["loc"], content)
        # What is wrong with a mapping is not that it could have been a string.
        is_other_option = isinstance(value, Mapping) and len(options_of(expected)) > 1
        return not is_unknown, is_other_option, is_missing

    first = min(errors, key=rank)
    if first["type"] == "json_invalid":
        for name, text in _texts(content):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                return f"{name}: expected text that is valid Unicode, got {text!r:.80}"
        return f"expected plain values ({first['ctx']['error']})"
    *outer, last = first["loc"] or ("",)
    name, value, holder = _spot(kind, outer, content)
    if first["type"] in _UNKNOWN_KEY:
        key, outer = str(last), f"{name}." if name else ""
        elsewhere = {field.rpartition(".")[2]: field for field, _ in field_types(kind)}
        configs = filter(is_config, options_of(holder))
        here = {field.name: f"{outer}{field.name}" for config in configs for field in dataclasses.fields(config)}
        ours = key.lower().replace("-", "_")
        if ours not in here | elsewhere and (alias := _NAMES_ELSEWHERE.get(ours, "")) in here | elsewhere:
            ours = alias
        # The name of a setting at another place is meant, unless it is nearly that of one here.
        near = difflib.get_close_matches(ours, here, n=1, cutoff=0.9 if ours in elsewhere else 0.6)
        if key in _NO_SETTING and ours not in here | elsewhere:
            return f"unknown key '{outer}{key}'; {_NO_SETTING[key]}"
        place = here[near[0]] if near else elsewhere.get(ours)
        return f"unknown key '{outer}{key:.200}'" + (f"; did you mean '{place}'?" if place else "")
    if first["type"] == "missing" and isinstance(last, str):
        locations = (error["loc"] for error in errors if error["type"] == "missing")
        missing = ", ".join(loc[-1] for loc in locations if loc[:-1] == (*outer,))
        return f"{name}: missing {missing}" if name else f"missing {missing}"
    if first["type"] != "missing":  # a missing item of a fixed-length list is an error of the list
        name, value, holder = _spot(kind, first["loc"], content)
    expected = f"expected {describe_type(holder)}, got {'null' if value is None else f'{value!r:.80}'}"
    lists = [option for option in options_of(holder) if typing.get_origin(option) in {list, tuple}]
    item: Any = typing.get_args(lists[0])[0] if lists else None
    if is_config(item) and isinstance(value, str) and value.isprintable():  # of --benchmarks pope,gqa
        fields = dataclasses.fields(item)
        required = [each.name for each in fields if each.default is each.default_factory] or ["path"]
        data = ", data: PATH" if "data" in {each.name for each in fields} else ""
        words = ", ".join(f"{{{required[0]}: {word.strip()}{data}}}" for word in value[:80].split(","))
        expected += f"; write '[{words}]'"
    return f"{name}: {expected}"


def _spot(kind: Any, loc: Sequence[str | int], content: Any) -> tuple[str, Any, Any]:
    """The dotted path of pydantic's location, the value at it, and the expected type."""
    name = ""
    for part in loc:
        options = options_of(kind)
        if len(options) > 1:  # the part is the name of an option
            option = next((each for each in options if is_config(each) and each.__name__ == part), None)
            if option is None:
                break
            kind = option
            continue
        (holder,) = options
        inner = typing.get_args(holder)
        if is_config(holder):
            kind = typing.get_type_hints(holder, include_extras=True)[str(part)]
        elif isinstance(part, int) and inner:
            kind = inner[part] if typing.get_origin(holder) is tuple and Ellipsis not in inner else inner[0]
        else:
            kind = inner[1] if len(inner) == 2 else Any
        content = content[part]
        name += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if name else part
    return name, content, kind


def options_of(kind: Any) -> tuple[Any, ...]:
    """The types in a union, without None and without ranges."""
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:
        return tuple(without_range(part) for part in typing.get_args(kind) if part is not type(None))
    return (without_range(kind),)


def without_range(kind: Any) -> Any:
    """``int`` of `clips.ranges.Positive`; any other type unchanged."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def field_types(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and types of a config's fields and nested fields; those in lists and mappings are ``field[].a``."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        yield prefix + field.name, hints[field.name]
        hint = without_range(hints[field.name])
        for inner in (hint, *typing.get_args(hint)):
            if is_config(inner):
                mark = "[]" if typing.get_origin(hint) in {list, tuple, dict} else ""
                yield from field_types(inner, f"{prefix}{field.name}{mark}.")


def describe_type(kind: Any) -> str:
    """A human-readable type, with its range: "a number from 0 to 1 or null"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        if inner[0] is bool:
            return "false"  # the only range that one has
        return _within_range(describe_type(inner[0]), inner[1:])
    if kind in _NAMES:
        return _NAMES[kind]
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in {types.UnionType, typing.Union}:
        texts = [describe_type(part) for part in inner]
        return (", or " if "each item" in texts[0] else " or ").join(texts)
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: " + ", ".join(describe_type(part) for part in inner)
    if is_config(kind):
        return "a mapping of " + ", ".join(field.name for field in dataclasses.fields(kind))
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping" + ("" if inner[1] is Any else f" of names to {describe_type(inner[1])}")
    if origin is not None and issubclass(origin, Sequence):
        return f"a list, each item {describe_type(inner[0])}"
    return str(kind)


def _within_range(text: str, constraints: Sequence[Any]) -> str:
    names = ("ge", "gt", "le", "lt", "min_length", "allow_inf_nan")  # pydantic's, as in ``Field(ge=0, lt=1)``
    limits: dict[str, Any] = {}
    for each in (each for field in constraints for each in field.metadata):
        limits |= {name: getattr(each, name) for name in names if getattr(each, name, None) is not None}
    if limits.get("allow_inf_nan") is False:
        text = text.replace("a number", "a finite number", 1)
    match limits:
        case {"min_length": least}:
            return text.replace("a list", f"a list of {least} or more", 1)
        case {"ge": least, "le": most}:
            return f"{text} from {least} to {most}"
        case {"ge": least, "lt": limit}:
            return f"{text} from {least} to below {limit}"
        case {"gt": bound, "le": most}:
            return f"{text} above {bound} and up to {most}"
        case {"gt": bound, "lt": limit}:
            return f"{text} above {bound} and below {limit}"
        case {"ge": least}:
            return f"{text} of at least {least}"
        case {"gt": bound}:
            return f"{text} above {bound}"
    return text
