"""Random inputs with a reference that says what is right: a check runs on 200 of them in ``make test``, on 5,000 in
``make test-long``.

The short run repeats the same inputs, so that a change is judged by what it changed; the long one draws others each
time. Both print their seed, and ``GENERATOR_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

QUICK, LONG = 200, 5_000
sizes = pytest.mark.parametrize(
    "examples", [QUICK, pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(7_200)])]
)
"""Marks a test with an argument ``examples``, to be given to `explore`."""


def explore(check: Callable[[st.DataObject], None], examples: int) -> None:
    """Call ``check`` with ``examples`` sources of random data; a failure is shown with its smallest input."""
    seed = int(os.environ.get("GENERATOR_SEED", 0 if examples <= QUICK else time.time_ns() % 2**32))
    print(f"GENERATOR_SEED={seed} repeats these {examples} inputs")

    @hypothesis.seed(seed)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(data=st.data())
    def run(data: st.DataObject) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(data)

    run()
