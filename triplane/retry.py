"""Bounded retries: jittered exponential delays under one total deadline.

An operation and a test for "worth trying again" -> its result, or one sentence that says what failed, how often and for how long.
Full jitter after Brooker, "Exponential backoff and jitter" (AWS Architecture Blog, 2015).
"""

import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from triplane.errors import TriplaneError, UsageError

T = TypeVar("T")

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 8.0
MAX_ATTEMPTS = 12
DEADLINE_VARIABLE = "TRIPLANE_STORAGE_DEADLINE_SECONDS"
DEFAULT_DEADLINE_SECONDS = 120.0


def deadline_seconds() -> float:
    """The total time one operation may take with all its retries, from the environment."""
    given = os.environ.get(DEADLINE_VARIABLE, str(DEFAULT_DEADLINE_SECONDS))
    try:
        return float(given)
    except ValueError as error:
        raise UsageError(f"{DEADLINE_VARIABLE} is {given!r}: give a number of seconds") from error


def delay_seconds(attempt: int) -> float:
    """A random wait in [0, 0.1 * 2^attempt], at most 8 s: two clients that failed together do not meet again."""
    return random.uniform(0.0, min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0**attempt))


def call(
    operation: Callable[[], T],
    is_transient: Callable[[Exception], bool],
    what: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """`operation()`, again after transient failures. Raises what is not transient as it is, else TriplaneError when time is up."""
    start = clock()
    limit = deadline_seconds()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return operation()
        except Exception as error:
            if not is_transient(error):
                raise
            wait = delay_seconds(attempt)
            spent = clock() - start
            if attempt == MAX_ATTEMPTS or spent + wait > limit:
                raise TriplaneError(
                    f"{what} failed {attempt} times in {spent:.1f} s (last: {_short(error)}): "
                    f"check the endpoint and the network, then run the same command again"
                ) from error
            sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
