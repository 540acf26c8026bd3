"""Grades in a process of their own, which is killed when a question takes too long or too much memory.

In: questions and the grader's name. Out: grades in order; a question that broke its bounds has a failure and counts as wrong. A text a model
wrote may take a regular expression for ever, and a limit by signal would hold in the main thread only, so the bounds are the parent's:
a deadline on the answer, and the kernel's limit on the child's address space. Nothing but JSON crosses the pipes. No text is run as code; should a
grader be fooled nevertheless, its process has no secrets in its environment, writes no file and (where user namespaces are allowed) has no network.
"""

import ctypes
import json
import math
import os
import resource
import selectors
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO

from triplane.errors import TriplaneError
from triplane.lm.verifiers.grading import GRADERS, METRICS, Grade, Question

READ_BYTES = 1 << 16
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME")  # what an interpreter needs to start, and no more
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h


@dataclass(frozen=True)
class Limits:
    """For each question. The memory is the child's address space, the interpreter included."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30


DEFAULT_LIMITS = Limits()
START_SECONDS = 60.0  # until a child that was just started must have answered: importing on a loaded machine


class Worker:
    """One child process; started when first asked, and again after it was killed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, grader: str, question: Question) -> Grade:
        """The grade, or one with a failure. TriplaneError when no child can be started."""
        if self.process is None:
            self.process = _start(self.limits)
        line = json.dumps([grader, asdict(question)]).encode() + b"\n"
        try:
            _stream(self.process.stdin).write(line)
            _stream(self.process.stdin).flush()
            answer = _read_line(_stream(self.process.stdout), self.limits.seconds)
        except BrokenPipeError:
            answer = b""
        if answer is None or not answer.endswith(b"\n"):
            self.stop()
            return _failed(grader, "time" if answer is None else "crash")
        return Grade(**json.loads(answer))

    def stop(self) -> None:
        """Kills the child; nothing of it stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                with suppress(BrokenPipeError):  # what it did not take before it ended
                    _stream(stream).close()
            self.process = None


def grade(grader: str, questions: Sequence[Question], limits: Limits = DEFAULT_LIMITS) -> list[Grade]:
    """The grades of all questions, in order. ValueError for a grader that there is not; TriplaneError."""
    if grader not in GRADERS:
        raise ValueError(f"no grader is named {grader!r}; there are {', '.join(GRADERS)}")
    worker = Worker(limits)
    try:
        return [worker.ask(grader, question) for question in questions]
    finally:
        worker.stop()


def _start(limits: Limits) -> subprocess.Popen[bytes]:
    """A session of its own: an interrupt at the terminal is the parent's to handle."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(one for one in sys.path if one)
    command = [sys.executable, "-m", "triplane.lm.verifiers.worker", str(limits.memory_bytes), str(limits.seconds)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
    if _read_line(_stream(process.stdout), START_SECONDS) != b"ready\n":
        process.kill()
        process.wait()
        raise TriplaneError(f"no process to check answers in could be started ({command[0]}): see its message above")
    return process


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # both are pipes
    return stream


def _read_line(stream: IO[bytes], seconds: float) -> bytes | None:
    """A line, what came of it before the child ended, or None when time is up between two pieces."""
    held = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(stream, selectors.EVENT_READ)
        while not held.endswith(b"\n"):
            if not waiting.select(seconds):
                return None
            piece = os.read(stream.fileno(), READ_BYTES)
            if not piece:
                return held
            held += piece
    return held


def _failed(grader: str, failure: str) -> Grade:
    return Grade(dict.fromkeys(METRICS[grader], 0.0), "", failure)


def _answer(line: bytes) -> Grade:
    """The child's answer to a line. A grader that raises has found a text it was not made for, which ends nothing."""
    grader, asked = json.loads(line)
    question = Question(**{**asked, "spans": tuple(map(tuple, asked["spans"])), "answers": tuple(asked["answers"])})
    try:
        return GRADERS[grader](question)
    except MemoryError:
        return _failed(grader, "memory")
    except Exception as error:
        return _failed(grader, f"error: {type(error).__name__}")


def confine(memory_bytes: int) -> bool:
    """Bounds this process: memory, no file written, no core dump, no other process, no network -> whether the last was granted by the kernel.

    Root may fork in spite of the limit, and a kernel without user namespaces leaves the network; neither is needed by a grader.
    """
    for what, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    return ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def _allow_cpu(seconds: float) -> None:
    """The deadline as processor time, a second later than the parent's: it ends a child whose parent was killed, whatever that child is in."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """The child: a line in, a line out, until its input ends."""
    confine(int(sys.argv[1]))
    seconds, out = float(sys.argv[2]), sys.stdout.buffer
    out.write(b"ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        _allow_cpu(seconds)
        out.write(json.dumps(asdict(_answer(line))).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
