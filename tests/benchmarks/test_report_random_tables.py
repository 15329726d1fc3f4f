"""Random tables: every printed sentence is read back and compared with numbers that are computed from the items."""

from __future__ import annotations

import pytest
from report_reader import read_tables


def test_every_sentence_of_random_tables_follows_from_their_items() -> None:
    assert read_tables([*range(40), 103, 353, 409, 415]) > 100  # the last four found faults


@pytest.mark.slow
def test_every_sentence_of_many_random_tables() -> None:
    assert read_tables(range(40, 500)) > 1000
