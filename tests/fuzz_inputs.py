"""Broken input: captions in any script, nested data with one part changed, damaged bytes."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD_CAPTIONS = (
    *("", " ", "\n\n", "\0", "\ufeff", "\u2028", "👩\u200d👩\u200d👧" * 9, "e" + "\u0301" * 500, "\u202eevil\u202c"),
    *("\x1b[2J\x1b]0;a\x07", "<script>alert(1)</script>", "{{ 7 * 7 }}", "[bold]a[/bold]", "[link=http://a]b"),
    *("$\\frac{1}{", "\\input{a}", "a" * 2**20, "ab. " * 2**18, "!" * 2**16, "漢" * 2**16, "&amp;" * 9999, "<image>"),
    *("\ud83d", "a\ud800b", "مرحبا بالعالم", "สวัสดีชาวโลก", "नमस्ते दुनिया", "./../../../etc/passwd", "pipe:true"),
)
CAPTIONS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=st.characters(exclude_categories=[]), max_size=30),  # lone surrogates as well
    st.sampled_from(ODD_CAPTIONS),
)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | CAPTIONS.filter(lambda text: len(text) < 1000)
    | st.sampled_from(
        [10**400, -0.0, float("nan"), "", "null", "~", "../..", "x" * 5000, 1e308, "1e5", "0x10", "2026-1-1"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw: st.DrawFn, content: Any) -> tuple[Any, tuple[str, ...]]:
    """Nested plain data with one part changed; and the names that lead there, the changed one among them."""
    content = copy.deepcopy(content)
    places = list(_places(content))
    parent, key, names = draw(st.sampled_from(places))
    kind = draw(st.sampled_from(["drop", "rename", "replace", "replace", "replace", "wrap", "unwrap", "add", "twice"]))
    value = parent[key]
    if kind == "drop":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        wrong = str(key) + draw(st.sampled_from(["x", "_", " ", ".a", "ü", "\n"]))
        parent[wrong] = parent.pop(key)
        names = (*names, wrong)
    elif kind == "add" and isinstance(parent, dict):
        wrong = draw(st.text(max_size=12))
        parent[wrong] = draw(PLAIN)
        names = (*names, wrong)
    elif kind == "wrap":
        parent[key] = draw(st.sampled_from([[value], {"a": value}, [[value, value]], {str(value)[:20]: None}]))
    elif kind == "unwrap" and isinstance(value, dict | list) and value:
        parent[key] = next(iter(value.values())) if isinstance(value, dict) else value[0]
    elif kind == "twice" and isinstance(parent, list):
        parent.append(value)
    else:
        parent[key] = draw(PLAIN)
    return content, tuple(name for name in names if name)


def _places(content: Any, names: tuple[str, ...] = ()) -> Any:
    """Every part of nested data: (what holds it, its key there, the names that lead to it)."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        inner = (*names, str(key)) if isinstance(content, dict) else names
        yield content, key, inner
        yield from _places(value, inner)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that were cut, changed, lengthened or replaced."""
    kind = draw(st.sampled_from(["cut", "change", "change", "insert", "remove", "replace"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:place]
    if kind == "change":
        return content[:place] + draw(st.binary(min_size=1, max_size=9)) + content[place + 1 :]
    if kind == "insert":
        return content[:place] + draw(st.binary(max_size=99)) + content[place:]
    if kind == "remove":
        return content[:place] + content[place + draw(st.integers(1, 99)) :]
    return draw(st.sampled_from([b"", b"\0" * 600, b"\xff\xfe", b"{}", b"[" * 5000, b"PAR1" * 9, b"GIF89a", b"%!PS\n"]))
