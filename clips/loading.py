"""Models from a user's files: all of their weights, or one line that says what is wrong with the files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.errors import UserError


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Make one line of whatever goes wrong in the block: ``what``, then the reason in brackets.

    Raises:
        UserError: the line; the block's own UserErrors pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise whatever a broken file makes them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{what} ({reason})") from None


def load_pretrained(kind: Any, directory: Path, what: str, **options: Any) -> Any:
    """A transformers model whose weights all come from the safetensors in ``directory``.

    Args:
        kind: the model's class, or an ``Auto`` class.
        directory: in transformers' layout.
        what: begins the message if it cannot be loaded.
        options: anything else for ``from_pretrained``.

    Raises:
        UserError: files are broken; weights are missing or of other shapes, for which transformers would draw
            random ones.
    """
    with refusing(f"{what} cannot be loaded"), _quiet():
        model, found = kind.from_pretrained(
            directory, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{what} lacks weights that its config.json needs: {_some(missing)}")
    if unlike := sorted(found["mismatched_keys"]):
        name, stored, expected = unlike[0]
        raise UserError(
            f"{what} has weights that do not fit its config.json: '{name}' has shape {tuple(stored)}, "
            f"not {tuple(expected)}"
        )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' table of missing weights off the screen; its first entry becomes our line."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _some(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
