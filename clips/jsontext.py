"""JSON that others wrote: any of it is read, or refused by one kind of error."""

from __future__ import annotations

import json
import re
from typing import Any

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # how a part of a surrogate pair may be written


def safe_json_loads(content: str | bytes) -> Any:
    """The value that ``content`` states.

    Half of a surrogate pair, as programs leave it that cut a text within an emoji, becomes a question mark: nothing
    could write it, and tokenizers refuse it.

    Raises:
        ValueError: it is no JSON, not UTF-8, or nested more deeply than anything meant to be read.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text)
        if _HALF.search(text):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None
