"""One progress bar and one structured log for every long job.

Counts -> a bar with rate and ETA on a terminal, a plain line every few seconds elsewhere, both on stderr; events -> JSON lines in the
file that TRIPLANE_LOG names. Source: rich (https://rich.readthedocs.io/en/latest/progress.html).
"""

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich import progress as rich_progress
from rich.console import Console

from triplane import metrics
from triplane.errors import UsageError

LOG_VARIABLE = "TRIPLANE_LOG"
LINE_SECONDS = 5.0
# Per process: logs that took a line before, and those whose failure has been told.
_written: set[str] = set()
_warned: set[str] = set()


def log(event: str, **fields: Any) -> None:
    """Appends {"time", "event", "pid", ...fields} as one JSON line to the file in TRIPLANE_LOG; nothing if that is unset.

    One write in append mode a line, so that processes sharing the file do not mix their lines. Raises UsageError when the
    first line cannot be written for another reason than a full disk; what fails later is told once on stderr, and the job goes on.
    """
    path = os.environ.get(LOG_VARIABLE)
    if not path:
        return
    line = json.dumps({"time": round(time.time(), 3), "event": event, "pid": os.getpid(), **fields}, default=str)
    try:
        _append(Path(path), line.encode() + b"\n")
        _written.add(path)
    except OSError as error:
        _lost(path, error)


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lost(path: str, error: OSError) -> None:
    problem = f"the log {path} ({LOG_VARIABLE}) cannot be written ({error.strerror})"
    if path not in _written and error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise UsageError(f"{problem}: name a file that can be, or unset {LOG_VARIABLE}") from error
    if path not in _warned:
        _warned.add(path)
        print(f"warning: {problem}; the job goes on, lines of the log are missing", file=sys.stderr)


def amount(value: float) -> str:
    """A count in three figures: 999, 1.23 k, 45.6 M."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(value) < 999.5 or unit == " T":
            break
        value /= 1000.0
    return f"{value:.3g}{unit}" if value != int(value) or unit else f"{int(value)}"


def duration(seconds: float) -> str:
    """A time in two figures: 4.2 s, 42 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass
class Bar:
    """One job's count. `show` draws it; a total of None means that the end is not known. `before`: done by an earlier attempt, and so no part
    of the rate."""

    name: str
    total: float | None
    unit: str
    show: Callable[["Bar"], None]
    clock: Callable[[], float] = time.monotonic
    done: float = 0
    cpu_seconds: float = 0
    before: float = 0
    job: str = field(init=False)  # the name it began with
    started: float = field(init=False)
    ended: float | None = field(default=None, init=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.job, self.started = self.name, self.clock()

    def advance(self, count: float = 1) -> None:
        """Counts more done, from any thread."""
        with self._lock:
            self.done += count
        metrics.count("done_total", count, job=self.job, unit=self.unit)
        self.show(self)

    def spend(self, cpu_seconds: float) -> None:
        """Adds what tasks elsewhere took, from any thread."""
        with self._lock:
            self.cpu_seconds += cpu_seconds

    @property
    def seconds(self) -> float:
        """From the start to the end, or to now."""
        return (self.clock() if self.ended is None else self.ended) - self.started

    @property
    def rate(self) -> float:
        """Units a second since the start; 0 before any time has passed."""
        return (self.done - self.before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Time to go at the rate so far; None while unknown."""
        if self.total is None or self.rate <= 0:
            return None
        return max(0.0, (self.total - self.done) / self.rate)

    def line(self) -> str:
        """tag: 1.2 k/5 k documents (24%), 300 documents/s, 13 s to go."""
        share = f" ({100 * self.done / self.total:.0f}%)" if self.total else ""
        of = f"/{amount(self.total)}" if self.total is not None else ""
        eta = f", {duration(self.eta_seconds)} to go" if self.eta_seconds else ""
        return f"{self.name}: {amount(self.done)}{of} {self.unit}{share}, {amount(self.rate)} {self.unit}/s{eta}"


class Progress:
    """Where bars are drawn. Bars may be open side by side; the terminal's display starts with the first and ends with the last."""

    def __init__(self, stream: TextIO | None = None, line_seconds: float = LINE_SECONDS) -> None:
        self._stream, self._line_seconds = stream, line_seconds
        self._lock = threading.Lock()
        self._display: rich_progress.Progress | None = None
        self._open = 0
        self.ended: list[Bar] = []  # what was counted, in the order in which it ended

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_display()

    @contextmanager
    def bar(self, name: str, total: float | None = None, unit: str = "items") -> Iterator[Bar]:
        """Counts a job: `with progress.bar("tag", 5000, "documents") as bar: bar.advance(10)`."""
        log("started", job=name, total=total, unit=unit)
        stream = self._stream or sys.stderr
        draw = self._terminal_bar if stream.isatty() else self._plain_bar
        outcome = "failed"
        with draw(name, total, unit, stream) as bar:
            try:
                yield bar
                outcome = "finished"
            finally:
                bar.ended = bar.clock()
                self.ended.append(bar)
                spent = {"cpu_seconds": round(bar.cpu_seconds, 3)} if bar.cpu_seconds else {}
                figures = {"seconds": round(bar.seconds, 3), "rate": round(bar.rate, 3), **spent}
                log(outcome, job=name, done=bar.done, unit=unit, **figures)

    @contextmanager
    def _plain_bar(self, name: str, total: float | None, unit: str, stream: TextIO) -> Iterator[Bar]:
        lock, next_line = threading.Lock(), time.monotonic() + self._line_seconds

        def show(bar: Bar) -> None:
            nonlocal next_line
            now = time.monotonic()
            if now < next_line:
                return
            with lock:
                if now < next_line:
                    return
                next_line = now + self._line_seconds
            print(bar.line(), file=stream, flush=True)

        bar = Bar(name, total, unit, show)
        yield bar
        print(f"{bar.line()}, took {duration(bar.seconds)}", file=stream, flush=True)

    @contextmanager
    def _terminal_bar(self, name: str, total: float | None, unit: str, stream: TextIO) -> Iterator[Bar]:
        display = self._start_display(stream)
        task = display.add_task(name, total=total, unit=unit, figures="")

        def show(bar: Bar) -> None:
            figures = f"{amount(bar.done)} {bar.unit}, {amount(bar.rate)}/s"
            display.update(task, description=bar.name, completed=bar.done, figures=figures)

        try:
            yield Bar(name, total, unit, show)
        finally:
            display.stop_task(task)
            self._stop_display(last=False)

    def _start_display(self, stream: TextIO) -> rich_progress.Progress:
        with self._lock:
            self._open += 1
            if self._display is None:
                self._display = rich_progress.Progress(
                    rich_progress.TextColumn("{task.description}"),
                    rich_progress.BarColumn(),
                    rich_progress.TaskProgressColumn(),
                    rich_progress.TextColumn("{task.fields[figures]}"),
                    rich_progress.TimeElapsedColumn(),
                    rich_progress.TimeRemainingColumn(),
                    console=Console(file=stream),
                )
                self._display.start()
            return self._display

    def _stop_display(self, last: bool = True) -> None:
        with self._lock:
            self._open = 0 if last else self._open - 1
            if self._open <= 0 and self._display is not None:
                self._display.stop()
                self._display = None


_SHARED = Progress()


def bar(name: str, total: float | None = None, unit: str = "items") -> AbstractContextManager[Bar]:
    """`Progress.bar` of the process's own display: `with progress.bar("tag", 5000, "documents") as bar: bar.advance(10)`."""
    return _SHARED.bar(name, total, unit)
