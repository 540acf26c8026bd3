"""One submission, one job: the same again attaches, after its end it runs anew, and a name is one content's."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Event

import pytest

from jobs.submission import submit as submission
from jobs.submission.job import Job, Parcel, State
from triplane.errors import LostRace, UsageError

JOB = Job("train", "name: x\n", "s3://bucket/root", ())
OTHER = Job("train", "name: y\n", "s3://bucket/root", ())


@dataclass
class Place:
    """Keeps jobs in memory; `late`: a job that another command starts between the look and the start."""

    known: dict[str, State] = field(default_factory=dict)
    late: State | None = None
    code: str = "code"
    target: str = "a place"

    def prepare(self, job: Job) -> Parcel:
        return Parcel("a parcel", 1234, self.code, ("python",))

    def find(self, id: str) -> State | None:
        return self.known.get(id)

    def submit(self, id: str, job: Job, parcel: Parcel) -> None:
        if self.late is not None:
            self.known[id] = replace(self.late, id=id)
            raise LostRace("submitted by another command")
        self.known[id] = State(id, "running", plane=job.plane, fingerprint=job.fingerprint(parcel.code))

    def log_of(self, id: str) -> str:
        return id

    def stream(self, id: str, emit: Callable[[str], None], stop: Event) -> None: ...

    def output(self, id: str) -> str:
        return ""

    def cancel(self, id: str) -> None: ...

    def jobs(self) -> list[State]:
        return list(self.known.values())

    def end(self, id: str, status: str) -> None:
        self.known[id] = replace(self.known[id], status=status)  # type: ignore[arg-type]


def submitted(place: Place, job: Job = JOB, name: str | None = None) -> tuple[str, bool]:
    made = submission.submit(place, job, name, lambda line: None)
    return made.id, made.attached


def test_the_same_again_attaches_and_another_does_not() -> None:
    place = Place()
    id, attached = submitted(place)
    assert (id, attached) == (f"train-{JOB.fingerprint('code')[:12]}", False)
    assert submitted(place) == (id, True)
    assert submitted(place, OTHER) != (id, True)
    assert len(place.known) == 2
    place.code = "newer code"  # the one that runs is not what this command would start
    assert submitted(place)[1] is False
    assert len(place.known) == 3


@pytest.mark.parametrize("status", ["failed", "stopped", "succeeded"])
def test_after_its_end_it_runs_anew(status: str) -> None:
    place = Place()
    assert submitted(place, name="a") == ("a", False)
    place.end("a", status)
    assert submitted(place, name="a") == ("a-2", False)
    assert submitted(place, name="a") == ("a-2", True)
    place.end("a-2", status)
    assert submitted(place, name="a") == ("a-3", False)


@pytest.mark.parametrize("status", ["running", "failed", "succeeded"])
def test_a_name_of_other_content_is_refused(status: str) -> None:
    place = Place()
    submitted(place, name="a")
    place.end("a", status)
    with pytest.raises(
        LostRace, match=rf"a is another train job at a place \({status}\) with another recipe.*give another --name"
    ) as caught:
        submitted(place, OTHER, name="a")
    assert caught.value.exit_code == 3
    assert len(place.known) == 1


def test_a_job_that_is_not_ours_keeps_its_name() -> None:
    place = Place({"a": State("a", "running")})
    with pytest.raises(LostRace, match="a is a job at a place"):
        submitted(place, name="a")


def test_who_loses_the_race_attaches_if_it_is_the_same() -> None:
    same = State("", "running", plane="train", fingerprint=JOB.fingerprint("code"))
    assert submitted(Place(late=same), name="a") == ("a", True)
    for other in (replace(same, fingerprint="another"), replace(same, status="failed")):
        with pytest.raises(LostRace):
            submitted(Place(late=other), name="a")


def test_what_is_said_and_what_a_plan_sends() -> None:
    said: list[str] = []
    place = Place()
    submission.submit(place, JOB, "a", said.append)
    submission.submit(place, JOB, "a", said.append)
    assert said == ["a: sending a parcel, 1.2 kB, to a place", "a runs at a place already: attached to it"]
    planned = submission.plan(place, OTHER, None)
    assert planned.id not in place.known
    assert planned.to_json("a place")["bytes"] == 1234
    with pytest.raises(UsageError):
        submission.plan(place, JOB, "Not A Name")
