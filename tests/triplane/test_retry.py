"""Retries: bounded by attempts and by time, jittered, and only for what may pass."""

import pytest

from triplane import retry
from triplane.errors import TriplaneError, UsageError


def test_retries_are_bounded_by_attempts_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], [0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def fail() -> None:
        calls[0] += 1
        now[0] += 1.0
        raise ConnectionError("reset")

    with pytest.raises(TriplaneError, match=r"read x failed 12 times .*ConnectionError: reset"):
        retry.call(fail, lambda error: True, "read x", sleep, lambda: now[0])
    assert calls[0] == retry.MAX_ATTEMPTS
    monkeypatch.setenv(retry.DEADLINE_VARIABLE, "3")
    calls[0], start = 0, now[0]
    with pytest.raises(TriplaneError, match="run the same command again"):
        retry.call(fail, lambda error: True, "read x", sleep, lambda: now[0])
    assert calls[0] <= 4 and now[0] - start <= 4.0


def test_a_deadline_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(retry.DEADLINE_VARIABLE, "soon")
    with pytest.raises(UsageError, match="TRIPLANE_STORAGE_DEADLINE_SECONDS is 'soon': give a number of seconds"):
        retry.call(lambda: 1, lambda error: True, "read x")


def test_what_is_not_transient_is_not_retried() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        retry.call(fail, lambda error: False, "read x")
    assert len(calls) == 1


def test_delays_are_jittered_and_grow_to_a_limit() -> None:
    for attempt in (1, 3, 20):
        delays = [retry.delay_seconds(attempt) for _ in range(300)]
        limit = min(retry.LONGEST_DELAY_SECONDS, 0.1 * 2.0**attempt)
        assert 0 <= min(delays) < 0.2 * limit and 0.8 * limit < max(delays) <= limit
