"""Submitting a job: checked, packed, recognised if it was submitted before, started.

A backend, a job and a name -> the id under which it runs. The id is the name, or the plane and a hash of what runs. The same submission again
attaches to the one that runs; when that has ended it runs anew, as ID-2, ID-3 ...; a name that other content has is refused.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.submission import package
from jobs.submission.job import Backend, Job, Parcel, State, checked_id
from triplane.errors import LostRace

HASH_DIGITS = 12


@dataclass(frozen=True)
class Submitted:
    """Where a submission ended up. `attached`: it was there already, and running."""

    id: str
    attached: bool
    parcel: Parcel
    fingerprint: str

    def to_json(self, target: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "target": target,
            "attached": self.attached,
            "ships": self.parcel.what,
            "bytes": self.parcel.bytes,
            "command": list(self.parcel.command),
            "fingerprint": self.fingerprint,
        }


def submit(backend: Backend, job: Job, name: str | None, say: Callable[[str], None]) -> Submitted:
    """Starts the job or attaches to it. Raises LostRace for a name in use with other content, Unreachable, Refused, UsageError."""
    planned = plan(backend, job, name)
    parcel = planned.parcel
    if planned.attached:
        say(f"{planned.id} runs at {backend.target} already: attached to it")
        return planned
    say(f"{planned.id}: sending {parcel.what}, {package.size(parcel.bytes)}, to {backend.target}")
    try:
        backend.submit(planned.id, job, parcel)
    except LostRace:
        state = backend.find(planned.id)
        if state is None or state.fingerprint != planned.fingerprint or state.is_over:
            raise
        say(f"{planned.id} was submitted by another command at this moment: attached to it")
        return Submitted(planned.id, True, parcel, planned.fingerprint)
    return planned


def plan(backend: Backend, job: Job, name: str | None) -> Submitted:
    """What `submit` would do: packs, asks the backend, sends nothing. Raises as it does."""
    parcel = backend.prepare(job)
    fingerprint = job.fingerprint(parcel.code)
    base = checked_id(name) if name else f"{job.plane}-{fingerprint[:HASH_DIGITS]}"
    for attempt in itertools.count(1):
        id = base if attempt == 1 else f"{base}-{attempt}"
        state = backend.find(id)
        if state is None or (state.fingerprint == fingerprint and not state.is_over):
            return Submitted(id, state is not None, parcel, fingerprint)
        if state.fingerprint != fingerprint:
            raise LostRace(_in_use(backend, state))
    raise AssertionError("an attempt has every number")


def _in_use(backend: Backend, state: State) -> str:
    what = f"another {state.plane} job" if state.plane else "a job"
    return f"{state.id} is {what} at {backend.target} ({state.status}) with another recipe, root, overrides or code: give another --name"
