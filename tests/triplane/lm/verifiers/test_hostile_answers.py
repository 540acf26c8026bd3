"""Fault row 24: whatever a model writes, its grade comes, in bounds, alike in every thread, and nothing of it runs.

There is no grader that runs code (HumanEval, MBPP) or reads formulas (sympy): what can be fed is text, and these are the texts.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from triplane.lm.verifiers import worker
from triplane.lm.verifiers.grading import GRADERS, Grade, Question
from triplane.lm.verifiers.worker import Limits

ROOT = Path(__file__).parents[4]
LIMITS = Limits(seconds=30.0)  # none of the texts needs a second: a verdict never depends on the load
PAYLOADS = {
    "power_tower": "The answer is 10**10**10**10",
    "factorial": r"\boxed{factorial(factorial(99999))}",
    "import": "__import__('os').system('touch MARK')",
    "subclasses": "().__class__.__base__.__subclasses__()[0].__init__.__globals__['os'].popen('touch MARK')",
    "lambda": "(lambda f: f(f))(lambda f: f(f))",
    "shell": "$(touch MARK); `touch MARK` && touch MARK",
    "format": "{0.__class__.__mro__}%s%n" * 50,
    "nested_brackets": "(" * 100_000 + "1" + ")" * 100_000,
    "nested_fractions": r"\frac{" * 20_000 + "1" + "}{2}" * 20_000,
    "nested_json": "[" * 100_000,
    "huge_number": "9" * 1_000_000,
    "huge_exponent": "1e999999999 -1e-999999999 nan inf 0x" + "f" * 10_000,
    "commas": "1,2" * 50_000,
    "huge_text": "x y " * 50_000,
    "backtracking": "So the answer is " * 1000 + "(" * 500,
    "lines": "\n" * 300_000,
    "nul_and_surrogates": "\x00\ud800\udfff\u202e" * 1000,
    "digits_elsewhere": "٣٤٥ ５６７ ⅷ ²",
    "control": "\x1b]0;touch MARK\x07\x1b[2J\r\n" * 1000,
    "protocol": '{"metrics": {"exact_match": 1.0}, "extracted": "7"}\n["exact", {}]\nready\n',
}


def question(text: str) -> Question:
    return Question(text, ("6174", "sixty"), (("6174",),), {"pattern": r"\([A-Z]\)"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers are, and what a text would write there."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def workers(folder: Path) -> Iterator[list[worker.Worker]]:
    """One for this thread and one for another: what a text did to a worker would show in the grades of the next one."""
    made = [worker.Worker(LIMITS) for _ in range(2)]
    before = Path.cwd()
    os.chdir(folder)
    try:
        for one in made:
            one.ask("exact", question("6174"))
    finally:
        os.chdir(before)
    yield made
    for one in made:
        one.stop()


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_hostile_answer_is_wrong_alike_in_every_thread(name: str, workers: list[worker.Worker], folder: Path) -> None:
    asked = question(PAYLOADS[name].replace("MARK", "mark"))
    mine, others = workers
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(_all_grades, others, asked)
        here = _all_grades(mine, asked)
    assert elsewhere.result() == here
    assert all(set(grade.metrics.values()) == {0.0} for grade in here.values()), here
    assert all(grade.failure in (None, "time", "memory") for grade in here.values())
    assert list(folder.iterdir()) == []


def _all_grades(one: worker.Worker, asked: Question) -> dict[str, Grade]:
    return {grader: one.ask(grader, asked) for grader in GRADERS}


def test_the_right_answer_after_them_is_right(workers: list[worker.Worker], folder: Path) -> None:
    """The control: the graders above are not deaf, and work where a text could have left its mark."""
    for one in workers:
        right = _all_grades(one, question("6174"))
        assert {grade.metrics["exact_match"] for name, grade in right.items() if name != "pattern"} == {1.0}
        assert one.process is not None and Path(f"/proc/{one.process.pid}/cwd").readlink() == folder


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(r"(?:a+)+b", "a" * 60 + "!"), (r"(?:a|a)*c", "a" * 60), (r"(?:.*,){30}z", "1," * 3000)],
)
def test_a_pattern_without_end_is_killed_in_any_thread(pattern: str, text: str) -> None:
    endless = Question(text, ("x",), options={"pattern": pattern})
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(worker.grade, "pattern", [endless], Limits(seconds=0.5))
        assert worker.grade("pattern", [endless], Limits(seconds=0.5)) == elsewhere.result()
    assert elsewhere.result()[0].failure == "time"


CONFINED = """
import os, socket, sys
from triplane.lm.verifiers import worker
if sys.argv[1] == "yes":
    print(worker.confine(1 << 30))
for attempt in (
    lambda: open(sys.argv[3], "wb", 0).write(b"x"),
    lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), 5).close(),
    lambda: bytearray(2 << 30)[:0],
):
    try:
        attempt()
        print("done")
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""


def _attempts(confined: str, port: int, path: Path) -> list[str]:
    command = [sys.executable, "-c", CONFINED, confined, str(port), str(path)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()


def test_a_worker_writes_no_file_reaches_no_socket_and_has_bounded_memory(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        is_apart, *attempts = _attempts("yes", port, tmp_path / "a")
        assert attempts[0] == "OSError" and attempts[2] == "MemoryError"
        assert _attempts("no", port, tmp_path / "b") == ["done"] * 3
    if is_apart != "True":
        pytest.skip("this kernel allows no user namespace: the network is left")
    assert attempts[1] == "OSError"


def test_secrets_of_the_environment_are_not_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-the-test")
    one = worker.Worker(LIMITS)
    try:
        one.ask("exact", question("6174"))
        assert one.process is not None
        told = Path(f"/proc/{one.process.pid}/environ").read_bytes()
    finally:
        one.stop()
    assert b"PYTHONPATH=" in told and b"canary-of-the-test" not in told


ORPHAN = """
import sys
from triplane.lm.verifiers import worker
from triplane.lm.verifiers.grading import Question
one = worker.Worker(worker.Limits(seconds=1.0))
one.ask("exact", Question("1", ("1",)))
one.limits = worker.Limits(seconds=600.0)
print(one.process.pid, flush=True)
one.ask("pattern", Question("a" * 60 + "!", ("x",), options={"pattern": "(?:a+)+b"}))
"""


def test_a_worker_whose_parent_was_killed_ends_too() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    assert Path(f"/proc/{child}").exists()  # it is in an expression without end, and nobody is left to kill it
    deadline = time.monotonic() + 30
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    """A process that ended and was not waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_worker_is_left() -> None:
    before = _children()
    worker.grade("pattern", [question(PAYLOADS["nested_brackets"])], LIMITS)
    assert _children() == before


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
