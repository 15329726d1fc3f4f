"""JSON of other programs: any valid JSON is read, and errors have one type."""

from __future__ import annotations

import json
import re
from typing import Any

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escaped part of a surrogate pair


def safe_json_loads(content: str | bytes) -> Any:
    """The parsed value of ``content``.

    A lone surrogate, left by programs that truncate strings within an emoji, becomes a question mark: it cannot be
    encoded, and tokenizers reject it.

    Raises:
        ValueError: invalid JSON, not UTF-8, or nested too deeply.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text)
        if _SURROGATE.search(text):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None
