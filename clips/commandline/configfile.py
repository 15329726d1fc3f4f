"""YAML as people write it by hand: what a reader would let pass or choke on is told with its line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clips.errors import UserError

MOST_VALUES = 100_000
"""Of a YAML file, those that its aliases repeat counted each time."""


def check_size(node: yaml.Node, known: dict[int, int] | None = None) -> int:
    """How many values a node stands for once its aliases are written out.

    Raises:
        UserError: more than ``MOST_VALUES``, as a few lines of aliases to aliases would make.
    """
    known = {} if known is None else known
    if id(node) not in known:
        known[id(node)] = 1  # of a node that contains itself, which is refused later
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(check_size(part, known) for part in parts)
        if known[id(node)] > MOST_VALUES:
            raise UserError(f"line {node.start_mark.line + 1}: aliases make more than {MOST_VALUES:,} values of it")
    return known[id(node)]


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that is given twice and an anchor that contains itself.

    And what is small but stands for very much, see `check_size`.
    """

    def construct_document(self, node: yaml.Node) -> Any:
        """Build inner parts at once rather than later, so that a circle is seen."""
        check_size(node)
        self.deep_construct = True
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise UserError(f"line {key.start_mark.line + 1}: the key '{key.value}' is given twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_config_files(arguments: Sequence[str], prog: str) -> None:
    """Look at each file that ``--config FILE`` or ``--config=FILE`` names before the parser does.

    Raises:
        UserError: not UTF-8 text, a key that is given twice, or a part that is no plain value. What else may be
            wrong, a missing file above all, is left to the parser.
    """
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, mark, value = word.partition("=")
        name = value if mark else following
        if flag == "--config" and _is_file(name, prog):
            _check_file(Path(name), f"{prog}: --config: {name}")


def _is_file(name: str, prog: str) -> bool:
    """Whether there is such a file; UserError where no file could be called so."""
    try:
        if "\0" not in name:
            return Path(name).is_file()
    except OSError:  # longer than names may be
        pass
    raise UserError(f"{prog}: --config: no such file: {name:.80}")


def _check_file(path: Path, where: str) -> None:
    try:
        yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: expected UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{where}: line {line}: expected plain values ({error.problem})") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except (yaml.YAMLError, ValueError):
        return
