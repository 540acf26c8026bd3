"""Following a job: its state is polled until it is over, its output shown as it comes, over as many connections as that takes.

A backend and an id -> the job's final state. What the platform says of the job is believed, a connection that ends is not: neither a log stream
that breaks nor a server that answers 503 for a while says anything about the job. (`ray job submit` ends with its stream: ray issues 43068, 57002.)
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.submission.job import Backend, State, Unreachable
from triplane.errors import TriplaneError

POLL_SECONDS = 1.0
RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 10.0
OUT_OF_SIGHT_SECONDS = 600.0
LAST_OUTPUT_SECONDS = 30.0
CANCEL_SECONDS = 180.0
WAITING_SECONDS = 10.0  # a job that has not started by then is said to wait
MAX_REASON = 300


@dataclass
class _Output:
    """The job's output, read by a thread: `pieces` has each character once, whichever connection brought it. `seen`: characters of `log`."""

    backend: Backend
    id: str
    pieces: "queue.Queue[str]" = field(default_factory=queue.Queue)
    over: threading.Event = field(default_factory=threading.Event)  # the job has ended
    stop: threading.Event = field(default_factory=threading.Event)
    complete: threading.Event = field(default_factory=threading.Event)
    log: str = ""
    seen: int = 0
    came: bool = False  # there was output at all

    def read(self) -> None:
        """Connects again and again while the job runs. The rest, once it is over, comes as one answer of known length: a stream that ends without
        an error may still have been cut."""
        wait = RETRY_SECONDS
        while not self.stop.is_set() and not self.complete.is_set():
            was_over, before = self.over.is_set(), self.seen
            with contextlib.suppress(TriplaneError):  # it says nothing of the job: try again
                self._choose_log()
                if was_over:
                    self._take(self.backend.output(self.id), 0)
                    self.complete.set()
                    return
                self._connect()
            wait = RETRY_SECONDS if self.seen > before else min(2 * wait, MAX_RETRY_SECONDS)
            (self.stop if was_over else self.over).wait(wait)

    def _choose_log(self) -> None:
        """What was seen of another log says nothing of this one."""
        log = self.backend.log_of(self.id)
        if log != self.log:
            self.log, self.seen = log, 0

    def _connect(self) -> None:
        position = 0

        def emit(text: str) -> None:
            nonlocal position
            self._take(text, position)
            position += len(text)

        self.backend.stream(self.id, emit, self.stop)

    def _take(self, text: str, position: int) -> None:
        """Keeps what is new of a text that stands at this position of the output."""
        new = text[max(0, self.seen - position) :]
        if new:
            self.seen, self.came = self.seen + len(new), True
            self.pieces.put(new)


def follow(backend: Backend, id: str, write: Callable[[str], None], say: Callable[[str], None]) -> State:
    """Waits for the job's end; its output goes to `write`, what happens on the way to `say`. Raises TriplaneError when the job is lost sight of."""
    output = _Output(backend, id)
    reader = threading.Thread(target=output.read, daemon=True, name=f"output of {id}")
    reader.start()
    told_at = time.monotonic() + WAITING_SECONDS
    try:
        state = state_of(backend, id, say)
        while not state.is_over:
            _show(output, write, POLL_SECONDS)
            state = state_of(backend, id, say)
            if state.status == "pending" and time.monotonic() > told_at:
                say(f"{id} waits to start{f': {state.message}' if state.message else ''}")
                told_at = float("inf")
        output.over.set()
        while _show(output, write, LAST_OUTPUT_SECONDS) and not output.complete.is_set():
            pass
        if not output.complete.is_set():
            say(
                f"the end of {id}'s output did not come in {LAST_OUTPUT_SECONDS:.0f} s; how it ended is known all the same"
            )
    finally:
        output.stop.set()
        reader.join(2 * RETRY_SECONDS)
    say(ending(state, output.came))
    return state


def ending(state: State, has_output: bool) -> str:
    """One sentence: how a job ended."""
    if state.status == "succeeded":
        return f"{state.id} finished"
    if state.status == "stopped":
        return f"{state.id} was stopped"
    known = f"failed with exit code {state.own_exit_code}" if state.exit_code else "failed"
    first = (state.message.strip().splitlines() or [""])[0][:MAX_REASON]
    why = f": {first}" if first else ""
    return f"{state.id} {known}{why}" if has_output else f"{state.id} {known} before its first line of output{why}"


def wait_for_end(backend: Backend, id: str, say: Callable[[str], None]) -> State:
    """The state in which a cancelled job ends; one that is gone was stopped. Raises TriplaneError after CANCEL_SECONDS."""
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:
        try:
            state = backend.find(id)
        except Unreachable as error:
            say(str(error))
            time.sleep(POLL_SECONDS)
            continue
        if state is None:
            return State(id, "stopped")
        if state.is_over:
            return state
        time.sleep(POLL_SECONDS / 4)
    raise TriplaneError(f"{id} was asked to end and still runs after {CANCEL_SECONDS:.0f} s: look at its output")


def state_of(backend: Backend, id: str, say: Callable[[str], None]) -> State:
    """The job's state, asked for again while nobody answers. Raises TriplaneError after OUT_OF_SIGHT_SECONDS, or for a job not known any more."""
    deadline, wait, told = time.monotonic() + OUT_OF_SIGHT_SECONDS, RETRY_SECONDS, False
    while True:
        try:
            state = backend.find(id)
            break
        except Unreachable as error:
            if time.monotonic() > deadline:
                raise TriplaneError(f"{error}; how {id} ends is not known, it may still run") from error
            if not told:
                say(f"{error}; {id} may go on all the same: asking again for {OUT_OF_SIGHT_SECONDS / 60:.0f} minutes")
            told = True
            time.sleep(wait)
            wait = min(2 * wait, MAX_RETRY_SECONDS)
    if state is None:
        raise TriplaneError(f"{backend.target} knows no job {id} (any more): how it ended, if it did, is not known")
    if told:
        say(f"{backend.target} answers again")
    return state


def _show(output: _Output, write: Callable[[str], None], seconds: float) -> bool:
    """Writes what comes in some seconds, or all that is left once it is complete -> whether anything came."""
    until, came = time.monotonic() + seconds, False
    while True:
        done = output.complete.is_set()  # asked before the look: what was put before is found
        try:
            write(output.pieces.get(timeout=0.001 if done else min(seconds, 0.1)))
            came = True
        except queue.Empty:
            if done:
                return came
        if not done and time.monotonic() >= until:
            return came
