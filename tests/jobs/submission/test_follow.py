"""Following a job whose place breaks off, answers 503 and comes back: the output is whole, once, and the end is the job's own."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from jobs.submission import follow
from jobs.submission.job import Job, Parcel, State, Unreachable
from triplane.errors import Refused, TriplaneError

TEXT = "".join(f"line {i}\n" for i in range(40))


@dataclass
class Place:
    """Runs one job, that ends after some looks at it. `breaks`: after how many characters each connection breaks off."""

    states: list[State | TriplaneError | None]
    breaks: list[int] = field(default_factory=list)
    cleanly: bool = False
    fails: int = 0
    text: str = TEXT
    connections: int = 0
    target: str = "a place"
    earlier: str = ""  # the log of an attempt before: the first connection's

    def log_of(self, id: str) -> str:
        return "first" if self.earlier and not self.connections else "last"

    def find(self, id: str) -> State | None:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, TriplaneError):
            raise state
        return state

    def stream(self, id: str, emit: Callable[[str], None], stop: threading.Event) -> None:
        self.connections += 1
        if self.earlier and self.connections == 1:
            return emit(self.earlier)
        at = self.breaks.pop(0) if self.breaks else len(self.text)
        for start in range(0, at, 7):
            emit(self.text[start : min(start + 7, at)])
        if at < len(self.text) and not self.cleanly:
            raise Unreachable("the output broke off")
        while at == len(self.text) and not stop.wait(0.01) and len(self.states) > 1:
            pass  # as a server does: the connection stays until the job is over

    def prepare(self, job: Job) -> Parcel:
        raise AssertionError("nothing is sent here")

    def submit(self, id: str, job: Job, parcel: Parcel) -> None: ...

    def output(self, id: str) -> str:
        if self.fails:
            self.fails -= 1
            raise Unreachable("the answer broke off")
        return self.text

    def cancel(self, id: str) -> None: ...

    def jobs(self) -> list[State]:
        return []


RUNNING = State("a", "running")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(follow, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(follow, "LAST_OUTPUT_SECONDS", 1.0)


def followed(place: Place) -> tuple[State, str, list[str]]:
    written: list[str] = []
    said: list[str] = []
    return follow.follow(place, "a", written.append, said.append), "".join(written), said


@pytest.mark.parametrize("cleanly", [False, True])
@pytest.mark.parametrize("breaks", [[], [0], [1, 3, 3, 9], [len(TEXT) - 1], [100, 50, 0, 200]])
@pytest.mark.parametrize("last", [State("a", "succeeded", 0), State("a", "failed", 3), State("a", "failed", -9)])
def test_output_is_whole_and_once_and_the_end_is_the_jobs_own(breaks: list[int], cleanly: bool, last: State) -> None:
    state, written, _ = followed(Place([RUNNING] * 5 + [last], list(breaks), cleanly, fails=2))
    assert (state, written) == (last, TEXT)


def test_a_retried_job_shows_the_output_of_each_attempt() -> None:
    failed = State("a", "failed", 2)
    first = "attempt 1\n" * 500
    state, written, _ = followed(Place([RUNNING] * 5 + [failed], earlier=first))
    assert (state, written) == (failed, first + TEXT)
    assert followed(Place([RUNNING] * 5 + [failed], earlier=first, text=""))[2] == ["a failed with exit code 2"]


def test_a_job_in_a_queue_is_said_to_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = State("a", "pending", message="quota is used up")
    states: list[State | TriplaneError | None] = [*[waiting] * 9, RUNNING, State("a", "succeeded", 0)]
    assert followed(Place(list(states)))[2] == ["a finished"]
    monkeypatch.setattr(follow, "WAITING_SECONDS", 0.05)
    assert followed(Place(list(states)))[2] == ["a waits to start: quota is used up", "a finished"]


def test_a_connection_that_ends_with_the_job_running_says_nothing_of_it() -> None:
    """`ray job submit` returned success here."""
    place = Place([RUNNING] * 20 + [State("a", "failed", 7)], [5] * 8, cleanly=True)
    assert followed(place)[0].own_exit_code == 7
    assert place.connections > 2


def test_503_for_a_while() -> None:
    gone: list[State | TriplaneError | None] = [Unreachable("http://x answers 503")] * 4
    state, written, said = followed(Place([RUNNING, *gone, RUNNING, *gone, State("a", "failed", 2)]))
    assert (state.own_exit_code, written) == (2, TEXT)
    assert said == [
        "http://x answers 503; a may go on all the same: asking again for 10 minutes",
        "a place answers again",
        "http://x answers 503; a may go on all the same: asking again for 10 minutes",
        "a place answers again",
        "a failed with exit code 2",
    ]


def test_a_place_that_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "OUT_OF_SIGHT_SECONDS", 0.1)
    with pytest.raises(TriplaneError, match="http://x answers 503; how a ends is not known, it may still run"):
        followed(Place([RUNNING, Unreachable("http://x answers 503")]))


def test_a_job_that_is_not_known_any_more_did_not_succeed() -> None:
    with pytest.raises(
        TriplaneError, match=r"a place knows no job a \(any more\): how it ended, if it did, is not known"
    ):
        followed(Place([RUNNING, None]))


def test_a_refusal_is_not_waited_out() -> None:
    with pytest.raises(Refused, match="401"):
        followed(Place([RUNNING, Refused("http://x answers 401")]))


def test_output_that_cannot_be_had_does_not_hide_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LAST_OUTPUT_SECONDS", 0.1)
    state, written, said = followed(Place([RUNNING, State("a", "failed", 5)], [10] * 1000, fails=1000))
    assert (state.own_exit_code, written) == (5, TEXT[:10])
    assert said[-1] == "a failed with exit code 5"
    assert "how it ended is known all the same" in said[0]


def test_much_output_at_the_end_is_all_shown() -> None:
    text = "x" * 2_000_000
    _, written, _ = followed(Place([State("a", "succeeded", 0)], text=text))
    assert written == text


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State("a", "failed", 3), "a failed with exit code 3 before its first line of output"),
        (State("a", "failed", -9), "a failed with exit code 137 before its first line of output"),
        (
            State("a", "failed", None, "runtime_env setup failed: no space\nTraceback"),
            "a failed before its first line of output: runtime_env setup failed: no space",
        ),
        (State("a", "stopped"), "a was stopped"),
        (State("a", "succeeded", 0), "a finished"),
    ],
)
def test_a_job_that_dies_before_its_first_line(state: State, said: str) -> None:
    assert followed(Place([state], text=""))[2] == [said]


def test_leaving_leaves_no_reader_behind() -> None:
    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    place = Place([RUNNING])
    with pytest.raises(KeyboardInterrupt):
        follow.follow(place, "a", interrupted, lambda line: None)
    deadline = time.monotonic() + 5
    while any(one.name == "output of a" for one in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_waiting_for_a_cancelled_job(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    states = [RUNNING, Unreachable("503"), RUNNING, State("a", "stopped")]
    assert follow.wait_for_end(Place(states), "a", said.append).status == "stopped"
    assert said == ["503"]
    assert follow.wait_for_end(Place([RUNNING, None]), "a", said.append).status == "stopped"
    monkeypatch.setattr(follow, "CANCEL_SECONDS", 0.1)
    with pytest.raises(TriplaneError, match="a was asked to end and still runs"):
        follow.wait_for_end(Place([RUNNING]), "a", said.append)
