"""The programs infra/up and infra/down call: an argument list and text for stdin -> what it printed, or one sentence of why not.

No shell anywhere; what is secret goes through stdin, never through an argument.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from triplane.errors import TriplaneError, UsageError

INSTALL = {
    "aws": "https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
    "helm": "https://helm.sh/docs/intro/install/",
}
SHOWN_CHARACTERS = 2000


def require(tools: Iterable[str]) -> None:
    """Raises UsageError naming every tool that is not on PATH."""
    missing = [f"{tool} ({INSTALL[tool]})" for tool in tools if shutil.which(tool) is None]
    if missing:
        raise UsageError(f"not on PATH: {', '.join(missing)}; install what is named and run the same command again")


def run(arguments: Sequence[str], stdin: str = "", accepts: Collection[int] = (0,)) -> subprocess.CompletedProcess[str]:
    """Raises TriplaneError with the command and its own words when it ends in any way but `accepts`."""
    try:
        done = subprocess.run(arguments, input=stdin, capture_output=True, text=True, check=False)
    except OSError as error:
        raise TriplaneError(f"`{shlex.join(arguments)}` did not start: {error}") from error
    if done.returncode not in accepts:
        raise TriplaneError(f"`{shown(arguments)}` ended with {done.returncode}: {words(done)}")
    return done


def words(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command said, on one line."""
    said = " ".join((done.stderr.strip() or done.stdout.strip() or "it said nothing").split())
    return said[:SHOWN_CHARACTERS]


def shown(arguments: Sequence[str]) -> str:
    """The command as one may type it, long arguments cut."""
    return shlex.join(one if len(one) <= 120 else f"{one[:117]}..." for one in arguments)


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    """Its JSON. Raises TriplaneError if it printed something else."""
    try:
        return json.loads(done.stdout or "null")
    except ValueError as error:
        raise TriplaneError(
            f"`{shown(done.args)}` printed no JSON ({error}): {done.stdout[:200]!r}; check its version"
        ) from error
