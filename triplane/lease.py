"""Fenced leases on storage: numbered generations, each made by one put-if-absent.

A root, a name and an owner -> a lease until it expires, renewed by a heartbeat. Generation n + 1 can be made once n has expired or was
released; whoever holds the highest number holds the lease, and `is_current` before a commit fences the others off. No two clocks are
compared where a contender keeps `Sightings`: a lease has expired when it was seen unchanged for its ttl, by the contender's own monotonic
clock. Without them wall clocks decide how early a takeover comes: work may then be done twice, the commit is still one put-if-absent.
Source: Kleppmann, "How to do distributed locking" (2016), fencing tokens; Gray and Cheriton, "Leases" (1989).
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from triplane import storage
from triplane.artifact_format import is_inside
from triplane.errors import Corrupt, NotFound, TriplaneError, UsageError

FOLDER = "leases"
GENERATION_DIGITS = 12
RENEWALS_PER_TTL = 3


@dataclass(frozen=True)
class _State:
    """What a generation's object says. `nonce` makes the bytes of two owners differ, however they are called."""

    owner: str
    nonce: str
    expires_at: float
    ttl_seconds: float
    released: bool = False
    renewals: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(vars(self), sort_keys=True).encode()

    def is_live(self, now: float) -> bool:
        return not self.released and now < self.expires_at


@dataclass
class Sightings:
    """What one contender has seen of others' leases, and since when by its own clock, which never goes back."""

    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, tuple[str, int, float]] = field(default_factory=dict)

    def is_live(self, where: str, state: _State) -> bool:
        """Whether the generation at a URL may be alive: not released, and renewed within its ttl as far as was seen. New ones are."""
        if state.released:
            return False
        nonce, renewals, since = self._seen.get(where, ("", 0, 0.0))
        if (nonce, renewals) != (state.nonce, state.renewals):
            self._seen[where] = (state.nonce, state.renewals, self.clock())
            return True
        return self.clock() - since < state.ttl_seconds


@dataclass
class Lease:
    """A lease that was acquired. `generation` is the fencing number: higher = later."""

    url: str
    generation: int
    state: _State
    clock: Callable[[], float] = field(default=time.time, repr=False)
    renewed: float = field(default_factory=time.monotonic, repr=False)

    @property
    def owner(self) -> str:
        """Who acquired it."""
        return self.state.owner

    def is_current(self) -> bool:
        """Whether no later generation exists and this one was not released: ask before a commit."""
        return not self.state.released and _highest(self.url) == self.generation

    def renew(self) -> bool:
        """Moves the expiry to a full ttl from now. False: someone else took over, stop working."""
        if not self.is_current():
            return False
        # The later generation, not this object, decides who holds the lease: writing it late harms nobody.
        now, state = time.monotonic(), self.state
        self.state = replace(state, expires_at=self.clock() + state.ttl_seconds, renewals=state.renewals + 1)
        storage.put(_generation_url(self.url, self.generation), self.state.to_bytes())
        self.renewed = now
        return self.is_current()

    def release(self) -> None:
        """Lets the next one in at once; nothing happens if it was taken over."""
        if self.is_current():
            self.state = replace(self.state, released=True)
            storage.put(_generation_url(self.url, self.generation), self.state.to_bytes())

    @contextmanager
    def heartbeat(self) -> Iterator[threading.Event]:
        """Renews in a thread while the body runs; yields an event that is set when the lease was lost."""
        lost, done = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._beat, args=(lost, done), name=f"lease {self.url}", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            done.set()
            thread.join()

    def _beat(self, lost: threading.Event, done: threading.Event) -> None:
        while not done.wait(self.state.ttl_seconds / RENEWALS_PER_TTL):
            try:
                kept = self.renew()
            except TriplaneError:
                # Storage is out of reach: the lease is ours until it expires, and not a second longer.
                kept = time.monotonic() - self.renewed < self.state.ttl_seconds
            if not kept:
                lost.set()
                return


def acquire(
    root_url: str,
    name: str,
    owner: str,
    ttl_seconds: float,
    clock: Callable[[], float] = time.time,
    sightings: Sightings | None = None,
) -> Lease | None:
    """The lease `name` below a root, or None while another holds it. Raises UsageError, Corrupt.

    With `sightings` another's lease ends only when this process saw it unchanged for its ttl: ask again and again.
    """
    if ttl_seconds <= 0 or not is_inside(name):
        raise UsageError(f"lease {name!r} for {ttl_seconds} s: use a relative name and a time above 0")
    url = storage.join(root_url, FOLDER, name)
    highest = _highest(url)
    if highest and _may_be_live(url, highest, clock, sightings):
        return None
    lease = Lease(url, highest + 1, _State(owner, uuid.uuid4().hex, clock() + ttl_seconds, ttl_seconds), clock)
    try:
        if not storage.put_if_absent(_generation_url(url, lease.generation), lease.state.to_bytes()):
            return None
        # A slow writer may have made a number that had been used and pruned: the highest number says.
        return lease if lease.is_current() else None
    except BaseException:  # a signal, too, must not leave a lease that nobody holds
        _give_up(lease)
        raise


def _give_up(lease: Lease) -> None:
    """Releases a lease that may have been made, if it is ours and storage answers."""
    with suppress(TriplaneError):
        standing = _state(lease.url, lease.generation)
        if standing is not None and standing.nonce == lease.state.nonce:
            lease.release()


def _may_be_live(url: str, generation: int, clock: Callable[[], float], sightings: Sightings | None) -> bool:
    standing = _state(url, generation)
    if standing is None or sightings is None:
        return standing is None or standing.is_live(clock())
    return sightings.is_live(_generation_url(url, generation), standing)


def is_held(root_url: str, name: str, clock: Callable[[], float] = time.time) -> bool:
    """Whether a lease called `name`, or one below it (name/part), is live."""
    url = storage.join(root_url, FOLDER, name)
    states = (_state(storage.join(url, part), number) for part, number in _highest_by_name(url).items())
    return any(state is not None and state.is_live(clock()) for state in states)


def prune(root_url: str, modified_before: float, dry_run: bool = False) -> list[str]:
    """Removes generations that a later one replaced, if old -> names relative to the root. The highest always stays."""
    url = storage.join(root_url, FOLDER)
    highest = _highest_by_name(url)
    removed = []
    for entry in storage.entries(url):
        name, number = _parsed(entry.name)
        if 0 < number < highest.get(name, 0) and entry.modified <= modified_before:
            removed.append(f"{FOLDER}/{entry.name}")
            if not dry_run:
                storage.delete(storage.join(url, entry.name))
    return removed


def _generation_url(url: str, generation: int) -> str:
    return storage.join(url, f"{generation:0{GENERATION_DIGITS}d}.json")


def _parsed(entry_name: str) -> tuple[str, int]:
    """a/b/000000000003.json -> (a/b, 3); number 0 for an object that is no generation."""
    name, _, file = entry_name.rpartition("/")
    number = file.removesuffix(".json")
    is_generation = file.endswith(".json") and len(number) == GENERATION_DIGITS and number.isdecimal()
    return name, int(number) if is_generation else 0


def _highest_by_name(url: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in map(_parsed, storage.list_names(url)):
        if number > found.get(name, 0):
            found[name] = number
    return found


def _highest(url: str) -> int:
    return _highest_by_name(url).get("", 0)


def _state(url: str, generation: int) -> _State | None:
    """None if the generation vanished since it was listed (pruned: a later one exists)."""
    where = _generation_url(url, generation)
    try:
        values: dict[str, Any] = json.loads(storage.read(where))
        return _State(**values)
    except NotFound:
        return None
    except (ValueError, TypeError) as error:
        raise Corrupt(f"{where} is not a lease: remove it") from error
