"""A few hundred of the random calls of tests/fuzz.py, the same ones every time."""

from __future__ import annotations

import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(derandomize=True, database=None, deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_a_random_call_works_or_raises_one_line(random):
    call = fuzz.random_call(random)
    assert fuzz.problem(call) is None, fuzz.describe(call)


def test_the_random_calls_are_of_all_kinds():
    calls = [fuzz.random_call(fuzz.random.Random(seed)) for seed in range(400)]
    assert {(call.name, call.binding, bool(call.changes)) for call in calls} == {
        (name, binding, changed) for name in fuzz.OPS for binding in (True, False) for changed in (True, False)
    }
    assert {call.specs["spec"].get("dtype") for call in calls} >= set(fuzz.DTYPES)
