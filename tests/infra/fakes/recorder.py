"""What the fakes of `aws`, `kubectl` and `helm` share: each call is one JSON line in $FAKE_LOG, and $FAKE_FAIL makes one of them fail."""

import json
import os
import sys
from typing import Any


def begin(tool: str) -> list[str]:
    """The arguments, noted. Ends the process with 1 if the call contains $FAKE_FAIL."""
    arguments = sys.argv[1:]
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write(json.dumps([tool, *arguments]) + "\n")
    fail = os.environ.get("FAKE_FAIL", "")
    if fail and fail in " ".join([tool, *arguments]):
        end(1, error=f"Error: {tool} was told to fail")
    return arguments


def state(name: str) -> dict[str, Any]:
    if not os.path.exists(path := _path(name)):
        return {}
    with open(path) as file:
        return json.load(file)


def save(name: str, value: dict[str, Any]) -> None:
    with open(_path(name), "w") as file:
        json.dump(value, file)


def _path(name: str) -> str:
    """Not pathlib: its import is a third of what a fake takes, and there are hundreds of calls."""
    return f"{os.environ['FAKE_STATE']}/{name}.json"


def end(code: int, out: str = "", error: str = "") -> None:
    if out:
        print(out)
    if error:
        print(error, file=sys.stderr)
    sys.stdout.flush()
    os._exit(code)


def option(arguments: list[str], name: str) -> str:
    """The value of `--name VALUE` or `--name=VALUE`; empty if it was not given."""
    for index, one in enumerate(arguments):
        if one == name:
            return arguments[index + 1]
        if one.startswith(f"{name}="):
            return one.partition("=")[2]
    return ""
