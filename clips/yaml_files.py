"""One strict YAML loader for configs, study files and values of flags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from clips.errors import UserError

MAX_VALUES = 100_000
"""Maximum number of values in a YAML file, with its aliases expanded."""
_FLOAT, _MERGE, _TIMESTAMP = (f"tag:yaml.org,2002:{name}" for name in ("float", "merge", "timestamp"))


def check_expanded_size(node: yaml.Node, known: dict[int, int] | None = None) -> int:
    """The number of values of a node with its aliases expanded.

    Raises:
        UserError: more than ``MAX_VALUES``, which a few lines of nested aliases can produce.
    """
    known = {} if known is None else known
    if id(node) not in known:
        known[id(node)] = 1  # ends the recursion for a node that contains itself, which is rejected later
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(check_expanded_size(part, known) for part in parts)
        if known[id(node)] > MAX_VALUES:
            raise UserError(f"line {node.start_mark.line + 1}: aliases expand to more than {MAX_VALUES:,} values")
    return known[id(node)]


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which reads ``1e-3`` as a number and a date as a string.

    It rejects duplicate keys, anchors that contain themselves, and alias bombs (`check_expanded_size`).
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # yaml's own attribute
        first: [(tag, pattern) for tag, pattern in known if tag != _TIMESTAMP]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: yaml.Node) -> Any:
        """Construct nested values immediately, so that cycles are detected."""
        check_expanded_size(node)
        self.deep_construct = True
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with unique keys."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag != _MERGE:
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if isinstance(key, list | dict) or key == "":
                    raise UserError(f"line {line}: expected a name as a key, got {key!r:.80}")
                if key in seen:
                    raise UserError(f"line {line}: the key '{key}' is given twice")
                seen.add(key)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises UserError, if possible with the line."""
    try:
        return yaml.load(text, Loader=StrictLoader)
    except RecursionError:
        raise UserError("nested too deeply") from None
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"line {line}: expected plain values ({error.problem})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"not valid YAML ({' '.join(str(error).split())[:200]})") from None


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file. Raises UserError if it cannot be read or `parse_yaml` rejects it."""
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start})") from None
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character in the name
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path!s:.250}: cannot be read ({error.strerror})") from None
