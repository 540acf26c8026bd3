"""What every command shares: errors become one line and an exit code, results become JSON on stdout."""

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import typer

from triplane.errors import TriplaneError

P = ParamSpec("P")
R = TypeVar("R")

FAILED_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130
PREEMPTED_EXIT_CODE = 143
GOES_ON = "the same command goes on from what is committed"


class _Preempted(BaseException):
    """SIGTERM came. As KeyboardInterrupt it is no Exception, so that nothing takes it for a failure to try again."""


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command: what a user can act on is one line on stderr and the error's exit code; the rest keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _preemptible():
                return command(*args, **kwargs)
        except TriplaneError as error:
            raise _exit(f"error: {error}", error.exit_code) from None
        except KeyboardInterrupt:
            raise _exit(f"interrupted; {GOES_ON}", INTERRUPTED_EXIT_CODE) from None
        except _Preempted:
            raise _exit(f"preempted; {GOES_ON}", PREEMPTED_EXIT_CODE) from None
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            raise _exit(f"error: {sentence}", FAILED_EXIT_CODE) from error

    return wrapped


def _exit(line: str, code: int) -> typer.Exit:
    print(line, file=sys.stderr)
    return typer.Exit(code)


def _sentence(error: Exception) -> str | None:
    """What a failure of the machine (disk, permissions, network) means; None for what only a traceback explains."""
    if isinstance(error, BrokenPipeError):
        return None  # typer ends quietly when nobody reads its output any more
    if isinstance(error, OSError) and error.strerror:
        what = f"cannot use {error.filename or 'a file or connection'} ({error.strerror})"
    elif type(error).__name__ == "SafetensorError":  # by name: its import would cost every command its start
        what = f"cannot use a weights file ({error})"
    else:
        return None
    return f"{what}: check space, permissions and network, then run the same command again"


@contextmanager
def _preemptible() -> Iterator[None]:
    """SIGTERM ends the body as `_Preempted`, so that what it has open is closed; the handler before stands again afterwards.

    Ray puts handlers of its own in place, which stop what it started here and leave by SystemExit, with 15 or, when the cluster
    is in this process, with 1: the same to us.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    except SystemExit as error:
        replaced = signal.getsignal(signal.SIGTERM) is not _on_sigterm
        if error.code == signal.SIGTERM or (replaced and error.code == 1):
            raise _Preempted from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the clean-up short
    raise _Preempted


def emit_json(value: Any) -> None:
    """Writes one JSON document to stdout, keys sorted."""
    print(json.dumps(value, indent=2, sort_keys=True, default=str))


def data_folders(given: Sequence[str] | None) -> list[str]:
    """Each `--data`, else `TRIPLANE_EVAL_DATA`, else `data/eval` in `TRIPLANE_SHARED`, else beside the checkout."""
    shared = os.environ.get("TRIPLANE_SHARED", str(Path(__file__).parents[3] / "shared"))
    return list(given or []) or [os.environ.get("TRIPLANE_EVAL_DATA") or str(Path(shared) / "data" / "eval")]
