"""A job: what is to run, what is known of it once submitted, and what every place that runs jobs can do.

A plane, a recipe's text, a root and overrides -> the command that runs it anywhere, and the fingerprint by which the same submission is known
again. Places (`Backend`): child processes (`processes`), a Ray cluster (`ray_jobs`), Kubernetes (`kubernetes`).
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from triplane import recipe as recipes
from triplane.errors import TriplaneError, UsageError

PLANES = ("data", "train", "eval")
RECIPE = "recipe.yaml"
MODULES = {"data": "jobs.build_mix", "train": "jobs.train", "eval": "jobs.evaluate"}
MAX_ID = 40  # of KubeRay's 47, so that an attempt's number fits
STOPPED_EXIT_CODE = 143  # a job that was told to stop ended by SIGTERM, or would have
_ID = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


class Unreachable(TriplaneError):
    """What runs the job does not answer now; the job itself may go on."""


@dataclass(frozen=True)
class Job:
    """What is to run. `recipe` is the text of a recipe that needs no other file."""

    plane: str
    recipe: str
    root: str
    overrides: tuple[str, ...]

    def arguments(self, recipe: str) -> list[str]:
        """Of the plane's module, the recipe lying at the path `recipe`."""
        root = [self.root] if self.plane == "data" else ["--root", self.root]
        return [recipe, *root, *self.overrides]

    def command(self, python: str, recipe: str) -> list[str]:
        return [python, "-m", MODULES[self.plane], *self.arguments(recipe)]

    def fingerprint(self, code: str) -> str:
        """64 hex digits of what runs; `code` is the digest of the code that runs it. The same submission has the same."""
        parts = [self.plane, self.recipe, self.root, list(self.overrides), code]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Parcel:
    """What is sent, ready to be sent: `what` it is, its size, the digest of the code that will run, and the command that runs it."""

    what: str
    bytes: int
    code: str
    command: tuple[str, ...]
    content: Any = None


Status = Literal["pending", "running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True)
class State:
    """What is known of a submitted job. `exit_code` is its own, where it is known; `started` and `ended` in Unix seconds."""

    id: str
    status: Status
    exit_code: int | None = None
    message: str = ""
    plane: str = ""
    fingerprint: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def is_over(self) -> bool:
        return self.status in ("succeeded", "failed", "stopped")

    @property
    def own_exit_code(self) -> int:
        """What a shell would report: 128 + signal for a killed process; 1 for a failure whose code nobody knows."""
        if self.status == "succeeded":
            return 0
        if self.status == "stopped":
            return STOPPED_EXIT_CODE
        code = self.exit_code or 1
        return code % 256 or 1 if code > 0 else 128 - code


class Backend(Protocol):
    """A place that runs jobs. Its methods raise Unreachable when it does not answer, Refused when it does not let us in."""

    @property
    def target(self) -> str:
        """As `--to` names it."""

    def prepare(self, job: Job) -> Parcel:
        """Packs what would be sent. Sends nothing."""

    def find(self, id: str) -> State | None: ...

    def submit(self, id: str, job: Job, parcel: Parcel) -> None:
        """Starts it. LostRace when the id came into use meanwhile."""

    def log_of(self, id: str) -> str:
        """Which log `stream` and `output` read now: a job that its place starts anew has another, which begins at its own beginning."""

    def stream(self, id: str, emit: Callable[[str], None], stop: threading.Event) -> None:
        """Hands out the job's output from its beginning until the job is over, the connection breaks, or `stop` is set."""

    def output(self, id: str) -> str:
        """The job's output so far."""

    def cancel(self, id: str) -> None:
        """Asks the job to end."""

    def jobs(self) -> list[State]: ...


def checked_id(name: str) -> str:
    """A name that every place takes (DNS-1035 label). Raises UsageError."""
    if len(name) > MAX_ID or not _ID.fullmatch(name):
        raise UsageError(
            f"--name {name!r}: use at most {MAX_ID} lower-case letters, digits and hyphens, a letter first and no hyphen last"
        )
    return name


def read(plane: str, recipe: Path, root: str, overrides: tuple[str, ...]) -> Job:
    """The job of a recipe file. A run recipe with a `base` is written out whole; a relative root is made absolute. Raises UsageError."""
    if plane not in PLANES:
        raise UsageError(f"there is no plane {plane!r} to submit to: {', '.join(PLANES)}")
    try:
        text = recipe.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {recipe} cannot be read ({error}): name a YAML file in UTF-8") from error
    if plane == "train" and _has_base(text):
        text = _whole(recipe, overrides)
    return Job(plane, text, root if "://" in root else str(Path(root).absolute()), overrides)


def _has_base(text: str) -> bool:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return False  # the job says what is wrong with it, by the reader that names the line
    return isinstance(value, dict) and "base" in value


def _whole(recipe: Path, overrides: Sequence[str]) -> str:
    """As JSON, which is YAML too, and says of every word whether it is text. Overrides count already: without one, a key may be wrong."""
    from jobs import train

    return json.dumps(recipes.resolved(train.load(recipe, overrides)), indent=2, ensure_ascii=False) + "\n"
