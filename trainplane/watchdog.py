"""Ends a step that does not end: a rank is stopped, cut off or far behind, and the others wait for it in a collective.

(seconds) -> every rank's stacks and one sentence in the log, and the end of the process, so that whoever started it (Ray Train, torchrun) begins
again from the last checkpoint. Nothing less would do: the wait is in C, where no exception of Python arrives. Ranks tell each other where they
are through the store of their process group, on a connection of its own. With one rank, nothing is watched.
"""

import faulthandler
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainplane import parallel
from triplane.progress import log

MAX_PERIOD_SECONDS = 5.0
MAX_NAMED = 4  # ranks at one place
PERIODS = 10  # in the time a step may take
FIRST_STEP_SECONDS = 600  # beside that, in the first step of a process: the compiler's


@dataclass
class Heartbeat:
    """What a rank says of itself. `at`: the Python function that it is in. `ticks` count up as long as the process runs; `is_hung`: it has
    given up."""

    step: int
    where: str
    at: str = ""
    ticks: int = 0
    is_hung: bool = False
    is_done: bool = False


@dataclass
class Heard:
    """The last of another rank, and when it was new, by this process's clock."""

    heartbeat: Heartbeat
    at: float


def end_process(sentence: str) -> None:
    """The default of `ended`: says it and leaves with code 1, whatever other threads wait for."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


class Watchdog:
    """Of one rank: `with Watchdog(...) as dog`, `dog.beat()` after every step. Every rank enters. `ended` is called once, from a thread, with
    the sentence, and must end the process. No rank may be silent for `seconds`, and no step but the first may take as long."""

    def __init__(self, seconds: float, step: int = 0, ended: Callable[[str], None] = end_process) -> None:
        self._seconds, self._ended = seconds, ended
        self._period = min(seconds / PERIODS, MAX_PERIOD_SECONDS)
        self._mine = Heartbeat(step, f"host {socket.gethostname()}, pid {os.getpid()}")
        self._others: dict[int, Heard] = {}
        self._since, self._is_resting, self._answered = time.monotonic(), False, time.monotonic()
        self._more = float(FIRST_STEP_SECONDS)
        self._thread = threading.get_ident()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Watchdog":
        if parallel.world_size() > 1:
            nonce = parallel.from_rank_0(time.time_ns())
            store = dist.group.WORLD.get_group_store().clone()  # type: ignore[union-attr]
            store.set(_key(nonce, parallel.rank()), json.dumps(asdict(self._mine)))
            parallel.barrier()  # from here on there is a heartbeat of every rank
            ranks = [rank for rank in range(parallel.world_size()) if rank != parallel.rank()]
            self._hear(dict(zip(ranks, store.multi_get([_key(nonce, rank) for rank in ranks]), strict=True)))
            self._since = time.monotonic()
            for target in (lambda: self._tell_and_hear(store, nonce), self._watch):
                self._threads.append(threading.Thread(target=target, name="watchdog", daemon=True))
                self._threads[-1].start()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._mine.is_done = kind is None
        self._closed.set()
        for thread in self._threads:
            thread.join(2 * self._period)

    def beat(self) -> None:
        """A step has ended, and the next begins."""
        self._mine.step += 1
        self._since, self._more = time.monotonic(), 0.0

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """What is done inside (a save waits for storage) may take any time, as long as every rank is heard of."""
        self._is_resting = True
        try:
            yield
        finally:
            self._since, self._is_resting = time.monotonic(), False

    def _tell_and_hear(self, store: Any, nonce: int) -> None:
        """The thread that may wait for a store that does not answer."""
        ranks = list(self._others)
        mine, theirs = _key(nonce, parallel.rank()), [_key(nonce, rank) for rank in ranks]
        while True:
            is_last = self._closed.wait(self._period)
            self._mine.ticks += 1
            self._mine.at = _place(self._thread)
            with suppress(RuntimeError):  # the store is gone: so is who held it
                store.set(mine, json.dumps(asdict(self._mine)))
                if not is_last:
                    self._hear(dict(zip(ranks, store.multi_get(theirs), strict=True)))
            if is_last:
                return

    def _hear(self, said: Mapping[int, bytes]) -> None:
        self._answered = now = time.monotonic()
        for rank, text in said.items():
            heartbeat, before = Heartbeat(**json.loads(text)), self._others.get(rank)
            if before is None or heartbeat != before.heartbeat:
                self._others[rank] = Heard(heartbeat, now)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(self._period):
            if time.monotonic() - looked > self._seconds / 2:
                self._begin_anew()
            looked = time.monotonic()
            if self._must_end():
                self._mine.is_hung, self._mine.at = True, _place(self._thread)
                sentence = diagnosis(parallel.rank(), self._mine, self._others, self._answered, self._seconds)
                text = stacks()
                log("hung", rank=parallel.rank(), step=self._mine.step, reason=sentence, stacks=text)
                print(f"rank {parallel.rank()} hangs:\n{text}", file=sys.stderr, flush=True)
                if not self._closed.wait(2 * self._period + 0.2):  # the others hear of it, and show their stacks too
                    self._ended(sentence)
                return

    def _begin_anew(self) -> None:
        """This process was stopped itself, with its machine perhaps: what it did not hear meanwhile says nothing of the others."""
        self._since = self._answered = time.monotonic()
        for heard in list(self._others.values()):
            heard.at = self._since

    def _must_end(self) -> bool:
        now = time.monotonic()
        running = [heard for heard in list(self._others.values()) if not heard.heartbeat.is_done]
        is_silent = any(now - heard.at > self._seconds for heard in running)
        is_late = not self._is_resting and now - self._since > self._seconds + self._more
        return is_silent or is_late or any(heard.heartbeat.is_hung for heard in running)


def _key(nonce: int, rank: int) -> str:
    return f"watchdog/{nonce}/{rank}"


def _place(thread: int) -> str:
    """The function that a thread of this process is in."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return ""
    return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def stacks() -> str:
    """Those of every thread of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def diagnosis(rank: int, mine: Heartbeat, others: Mapping[int, Heard], answered: float, seconds: float) -> str:
    """Who is behind, by the heartbeats that this rank has heard, and what to do: one sentence. `answered`: when the store last did."""
    return (
        f"training stands still on rank {rank} in step {mine.step + 1}, and no step may take {seconds:g} s: "
        f"{_blamed(rank, mine, others, answered, seconds)}; look at that process and its host, and at the stacks in the log; where no restart "
        f"is left, the same command goes on from the last checkpoint, and a step that needs longer needs a larger "
        f"runtime.collective_timeout_seconds"
    )


def _blamed(rank: int, mine: Heartbeat, others: Mapping[int, Heard], answered: float, seconds: float) -> str:
    now = time.monotonic()
    if rank != 0 and now - answered > seconds / 2:
        where = f" ({others[0].heartbeat.where})" if 0 in others else ""
        return f"rank 0{where}, which keeps the heartbeats, has not answered for {now - answered:.0f} s"
    silent = [(r, h) for r, h in sorted(others.items()) if not h.heartbeat.is_done and now - h.at > seconds / 2]
    if silent:
        told = [f"rank {r} ({h.heartbeat.where}) said nothing for {now - h.at:.0f} s" for r, h in silent]
        return f"{', '.join(told)}, its last step was {silent[0][1].heartbeat.step}"
    known = {rank: mine} | {r: h.heartbeat for r, h in others.items()}
    first, last = (choose(beat.step for beat in known.values()) for choose in (min, max))
    if first < last:
        behind = [f"rank {r} ({beat.where})" for r, beat in sorted(known.items()) if beat.step == first]
        return f"{', '.join(behind)} is behind, at step {first} where others are at {last}"
    places: dict[str, list[str]] = {}
    for r, beat in sorted(known.items()):
        places.setdefault(beat.at, []).append(f"{r} ({beat.where})")
    told = [f"rank {', '.join(ranks[:MAX_NAMED])} in {at}" for at, ranks in sorted(places.items(), key=_rarity)]
    return f"every rank answers and has taken {last} steps: {'; '.join(told)}"


def _rarity(place: tuple[str, list[str]]) -> int:
    """Where few ranks are comes first: the others wait for them."""
    return len(place[1])
