"""CloudFormation stacks through the `aws` command: template and parameters -> a change set, carried out and waited for.

Reading changes nothing. A change set that is not carried out is discarded, and so is the empty stack that AWS makes to hold it.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.command import parsed, run
from infra.settings import Settings
from triplane.errors import LostRace, Refused, TriplaneError

POLL_SECONDS = 10.0
DEADLINE_SECONDS = 2 * 3600.0
HELD = "REVIEW_IN_PROGRESS"  # a stack that only holds a change set for its creation
NOTHING = ("didn't contain changes", "No updates are to be performed")
NOT_THERE, WRONG = "does not exist", 254


@dataclass(frozen=True)
class Change:
    action: str
    resource: str
    type: str


@dataclass(frozen=True)
class ChangeSet:
    stack: str
    identity: str
    creates: bool
    changes: tuple[Change, ...]


def describe(settings: Settings, stack: str) -> dict[str, Any] | None:
    """The stack, or None if there is none or it only holds a change set."""
    found = _look_up(settings, stack)
    return None if found is None or found["StackStatus"] in (HELD, "DELETE_COMPLETE") else found


def _look_up(settings: Settings, stack: str) -> dict[str, Any] | None:
    done = run(settings.aws("cloudformation", "describe-stacks", "--stack-name", stack), accepts=(0, WRONG, 255))
    if done.returncode:
        if NOT_THERE in done.stderr:
            return None
        raise TriplaneError(f"stack {stack} cannot be looked up: {' '.join(done.stderr.split())}")
    stacks: list[dict[str, Any]] = parsed(done)["Stacks"]
    return stacks[0]


def outputs(stack: Mapping[str, Any] | None) -> dict[str, str]:
    return {one["OutputKey"]: one["OutputValue"] for one in (stack or {}).get("Outputs", [])}


def parameters(stack: Mapping[str, Any] | None) -> dict[str, str]:
    """What it was created with."""
    return {one["ParameterKey"]: one["ParameterValue"] for one in (stack or {}).get("Parameters", [])}


def require_at_rest(stack: Mapping[str, Any] | None) -> None:
    """Raises LostRace while somebody else changes it, Refused after a creation that failed."""
    if stack is None:
        return
    name, status = stack["StackName"], stack["StackStatus"]
    if status.endswith("_IN_PROGRESS"):
        raise LostRace(f"stack {name} is {status}: somebody changes it now; wait until that has ended")
    if status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"):
        raise Refused(f"stack {name} is {status} and cannot be changed: run infra/down, then infra/up again")


def propose(settings: Settings, stack: str, template: Path, values: Mapping[str, str]) -> ChangeSet | None:
    """What would change; None if nothing would. Raises TriplaneError if AWS refuses the template or a parameter."""
    standing = describe(settings, stack)
    require_at_rest(standing)
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in sorted(values.items())]
    created = run(
        settings.aws(
            *("cloudformation", "create-change-set", "--stack-name", stack),
            *("--change-set-name", f"up-{time.time_ns()}", "--change-set-type", "UPDATE" if standing else "CREATE"),
            *("--template-body", f"file://{template}", "--parameters", json.dumps(given)),
            *("--capabilities", "CAPABILITY_IAM"),
            *("--tags", json.dumps([{"Key": "triplane:environment", "Value": settings.environment}])),
        )
    )
    identity = parsed(created)["Id"]
    proposed = ChangeSet(stack, identity, standing is None, ())
    found = _until(lambda: _change_set(settings, proposed), lambda one: one["Status"].endswith(("COMPLETE", "FAILED")))
    if found["Status"] == "FAILED":
        discard(settings, proposed)
        reason = found.get("StatusReason", "no reason given")
        if any(words in reason for words in NOTHING):
            return None
        raise TriplaneError(f"AWS refuses the change of stack {stack}: {reason}")
    return ChangeSet(stack, identity, standing is None, tuple(_change(one) for one in found["Changes"]))


def _change_set(settings: Settings, one: ChangeSet) -> dict[str, Any]:
    named = ("--stack-name", one.stack, "--change-set-name", one.identity)
    return parsed(run(settings.aws("cloudformation", "describe-change-set", *named)))


def _change(change: Mapping[str, Any]) -> Change:
    of = change["ResourceChange"]
    replaced = " (replaced)" if of.get("Replacement") == "True" else ""
    return Change(of["Action"] + replaced, of["LogicalResourceId"], of["ResourceType"])


def discard(settings: Settings, one: ChangeSet) -> None:
    """Leaves nothing of it behind. A stack that somebody else has begun to make since then is theirs, and stays."""
    named = ("--stack-name", one.stack, "--change-set-name", one.identity)
    run(settings.aws("cloudformation", "delete-change-set", *named))
    if one.creates and (_look_up(settings, one.stack) or {}).get("StackStatus") == HELD:
        run(settings.aws("cloudformation", "delete-stack", "--stack-name", one.stack))


def execute(settings: Settings, one: ChangeSet) -> dict[str, Any]:
    """The stack as it then is. Raises TriplaneError with AWS's own reason for the first resource that failed."""
    named = ("--stack-name", one.stack, "--change-set-name", one.identity)
    run(settings.aws("cloudformation", "execute-change-set", *named))
    stack = _settled(settings, one.stack)
    if stack is None or stack["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        status = stack["StackStatus"] if stack else "gone"
        raise TriplaneError(f"stack {one.stack} is {status}: {_why(settings, one.stack)}")
    return stack


def delete(settings: Settings, stack: Mapping[str, Any]) -> None:
    """Returns when it is gone. Raises TriplaneError with the reason of what could not be deleted."""
    identity = stack["StackId"]  # a deleted stack can be looked up by this only
    run(settings.aws("cloudformation", "delete-stack", "--stack-name", identity))
    left = _settled(settings, identity)
    if left is not None:
        raise TriplaneError(f"stack {stack['StackName']} is {left['StackStatus']}: {_why(settings, identity)}")


def _settled(settings: Settings, stack: str) -> dict[str, Any] | None:
    return _until(
        lambda: describe(settings, stack), lambda one: one is None or not one["StackStatus"].endswith("_IN_PROGRESS")
    )


def _why(settings: Settings, stack: str) -> str:
    """AWS's words for the first resource that failed; what failed because of it comes later."""
    events = parsed(run(settings.aws("cloudformation", "describe-stack-events", "--stack-name", stack)))["StackEvents"]
    failed = [one for one in events if one.get("ResourceStatus", "").endswith("_FAILED")]
    if not failed:
        return "no event says why; look at the stack's events in the console"
    first = failed[-1]  # newest first
    return f"{first['LogicalResourceId']} ({first['ResourceType']}): {first.get('ResourceStatusReason', 'no reason')}"


def _until(look: Callable[[], Any], is_done: Callable[[Any], bool]) -> Any:
    end = time.monotonic() + DEADLINE_SECONDS
    while not is_done(found := look()):
        if time.monotonic() > end:
            raise TriplaneError(f"AWS has not finished within {DEADLINE_SECONDS / 3600:.0f} hours: {found}")
        time.sleep(POLL_SECONDS)
    return found
