"""Evaluate encoders and LLaVAs on retrieval and MLLM benchmarks and compare them in one report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.analysis.frames import compare as compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    # imported when it is asked for: the commands import this package, too
    if name != "compare":
        raise AttributeError(f"module 'benchmarks' has no attribute '{name}'")
    from benchmarks.analysis.frames import compare

    return compare
