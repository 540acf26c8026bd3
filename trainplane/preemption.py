"""The notice that a run must end soon: SIGTERM, or a word from whoever started the process. All ranks agree on it after the same step.

`Notice.put()` from any thread or signal handler; `Agreement.any()` once a step, on every rank: the answer is one step old, so that no step
waits for it. Ending is then ordinary: save, commit, return; whoever asked for the whole run gets `Stopped`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from trainplane import parallel
from triplane.errors import TriplaneError


class Stopped(TriplaneError):
    """A run was saved before its end because a notice came. Exit code 143, as of a process that SIGTERM ended."""

    exit_code = 143


class Notice:
    """Of one process."""

    def __init__(self) -> None:
        self.is_put = False

    def put(self) -> None:
        self.is_put = True


class Agreement:
    """Whether any rank says yes, asked by every rank after every step, on a CPU process group of its own."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if parallel.world_size() > 1 else None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def any(self, mine: bool) -> bool:
        """With several ranks, what was said at the call before this one, which no rank waits for."""
        if self._group is None:
            return mine
        before = self._answer()
        if not before:
            said = torch.tensor([int(mine)])
            self._asked = dist.all_reduce(said, dist.ReduceOp.MAX, self._group, async_op=True), said
        return before

    def _answer(self) -> bool:
        if self._asked is None:
            return False
        work, said = self._asked
        self._asked = None
        work.wait()
        return bool(said.item())

    def close(self) -> None:
        """Waits for what is under way, so that the group can end. Every rank calls it."""
        self._answer()


@contextmanager
def sigterm_puts(notice: Notice) -> Iterator[None]:
    """In the main thread, SIGTERM puts the notice while the body runs; in another thread this does nothing.

    Another SIGTERM changes nothing: whoever cannot wait sends SIGKILL.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def put(number: int, frame: FrameType | None) -> None:
        notice.put()

    before = signal.signal(signal.SIGTERM, put)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextmanager
def watching(look: Callable[[], bool], notice: Notice, every_seconds: float) -> Iterator[None]:
    """A thread that puts the notice as soon as `look` says so."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_seconds) and not notice.is_put:
            if look():
                notice.put()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
