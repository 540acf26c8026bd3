"""A grading process is killed when it takes too long or too much, and grades alike in any thread."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from triplane.lm.verifiers import worker
from triplane.lm.verifiers.grading import Grade, Question, squad
from triplane.lm.verifiers.worker import Limits, Worker

ENDLESS = Question("a" * 60 + "!", ("x",), options={"pattern": "(?:a+)+b"})
PLAIN = Question("So the answer is aab.", ("aab",), options={"pattern": "a+b"})


def test_a_question_without_end_is_killed_and_the_next_is_graded() -> None:
    started = time.monotonic()
    found = worker.grade("pattern", [PLAIN, ENDLESS, PLAIN], Limits(seconds=0.7))
    assert [one.failure for one in found] == [None, "time", None]
    assert [one.metrics["exact_match"] for one in found] == [1.0, 0.0, 1.0]
    assert time.monotonic() - started < 30


def test_memory_is_bounded() -> None:
    """A text of 60 MB needs more than the child may have; the question fails and the child is another one after it."""
    large = Question("x y " * 15_000_000, ("x",))
    found = worker.grade("squad", [large, Question("x", ("x",))], Limits(seconds=60, memory_bytes=200 << 20))
    assert found[0].failure in ("memory", "crash") and set(found[0].metrics.values()) == {0.0}
    assert found[1].failure is None and found[1].metrics["f1"] == 1.0


def test_a_child_that_dies_is_replaced() -> None:
    one = Worker(Limits())
    try:
        assert one.ask("exact", Question("2", ("2",))).failure is None
        assert one.process is not None
        first = one.process.pid
        one.process.kill()
        one.process.wait()
        assert one.ask("exact", Question("2", ("2",))).failure == "crash"
        assert one.ask("exact", Question("2", ("2",))) == Grade({"exact_match": 1.0}, "2")
        assert one.process.pid != first
    finally:
        one.stop()


def test_an_error_in_a_grader_is_said_and_ends_nothing() -> None:
    broken = Question("x", ("x",), options={"pattern": "("})
    found = worker.grade("pattern", [broken, PLAIN])
    assert found[0].failure is not None and found[0].failure.startswith("error: ")
    assert found[1].failure is None
    with pytest.raises(ValueError, match="no grader is named 'eval'"):
        worker.grade("eval", [PLAIN])


def test_the_same_grades_in_any_thread_and_here() -> None:
    questions = [Question(f"{i} and \ud800 é {'x' * i}", (f"{i}", "é x")) for i in range(20)]
    here = [squad(one) for one in questions]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: worker.grade("squad", questions), range(4)))
    assert threading.current_thread() is threading.main_thread()
    assert all([dict(one.metrics) for one in grades] == [dict(one.metrics) for one in here] for grades in found)


def test_nothing_is_left_running() -> None:
    one = Worker(Limits())
    one.ask("exact", Question("2", ("2",)))
    assert one.process is not None
    pid = one.process.pid
    one.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    worker.grade("exact", [])  # starts none


def test_text_is_never_run(tmp_path: object) -> None:
    mark = f"{tmp_path}/mark"
    for text in (f"__import__('os').system('touch {mark}')", f"$(touch {mark})", f"`touch {mark}`"):
        for name in ("exact", "last_number", "squad", "drop"):
            worker.grade(name, [Question(text, ("1",), options={"pattern": r"\d"})])
    assert not os.path.exists(mark)
