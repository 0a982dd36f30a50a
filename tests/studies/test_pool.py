"""Tasks in parallel processes."""

import pytest
import tiny_work
from tiny_work import Budget

from dreamsa.studies.pool import each


def test_an_error_in_one_process_stops_the_others_and_is_raised():
    results = []
    with pytest.raises(ValueError, match="zero was given"):
        results.extend(each(tiny_work.square, [99, 0, 99, 5], 2, lambda: False))
    assert results == []


def test_no_task_starts_after_a_stop():
    assert list(each(tiny_work.square, [3, 5], 1, Budget(99))) == [9, 25]
    assert list(each(tiny_work.square, [3, 5], 1, Budget(1))) == []
