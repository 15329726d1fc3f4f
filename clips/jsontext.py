"""JSON of other programs: any valid JSON is read; errors are of a single type."""

from __future__ import annotations

import json
import re
from typing import Any

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # how a part of a surrogate pair may be written


def safe_json_loads(content: str | bytes) -> Any:
    """The parsed value of ``content``.

    Half of a surrogate pair, left by programs that cut a text within an emoji, becomes a question mark: it cannot be
    encoded, and tokenizers reject it.

    Raises:
        ValueError: invalid JSON, not UTF-8, or nested too deeply.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text)
        if _HALF.search(text):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None
