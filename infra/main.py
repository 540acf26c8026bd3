"""The command lines of infra/up and infra/down: arguments -> settings -> the stages; failures -> one sentence and the exit code."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from triplane.errors import TriplaneError, UsageError

INTERRUPTED = 130
ENVIRONMENT = re.compile(r"[a-z][a-z0-9-]{0,19}")
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]")


def up(arguments: Sequence[str] | None = None) -> int:
    parser = _parser("Brings Triplane up on AWS: validate, plan, apply, verify. Run it again at any time.")
    parser.add_argument(
        "--bucket", default="", metavar="NAME", help="the bucket of every artifact; the first time only"
    )
    parser.add_argument("--parameters", type=Path, metavar="FILE", help="YAML: foundation: and cluster: parameters")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="YAML: instance type: price an hour, for the plan")
    parser.add_argument(
        "--foundation-only", action="store_true", help="network, bucket and image repositories, to push to"
    )
    return _carried_out(lambda: _up(parser.parse_args(arguments)))


def down(arguments: Sequence[str] | None = None) -> int:
    parser = _parser("Takes Triplane on AWS down. The bucket and its key stay.")
    parser.add_argument("--delete-data", default="", metavar="BUCKET", help="delete the bucket too: type its name")
    return _carried_out(lambda: _down(parser.parse_args(arguments)))


def _parser(description: str) -> argparse.ArgumentParser:
    overlay = Path(__file__).parent / "k8s" / "overlays" / "aws"
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--environment", required=True, metavar="NAME", help="what to call it, e.g. dev")
    parser.add_argument("--region", required=True, metavar="REGION", help="e.g. us-east-1")
    parser.add_argument("--overlay", type=Path, default=overlay, metavar="FOLDER", help="kustomization of the platform")
    parser.add_argument("--pins", type=Path, default=None, metavar="FILE", help="versions and images (infra/pins.yaml)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="stop after the plan")
    return parser


def _up(given: argparse.Namespace) -> None:
    from infra import settings, stages

    wanted = settings.Settings(
        *_place(given),
        given.overlay,
        given.pins or settings.PINS,
        given.bucket,
        settings.read_parameters(given.parameters),
        settings.read_prices(given.prices),
    )
    stages.up(wanted, yes=given.yes, dry_run=given.dry_run, foundation_only=given.foundation_only)


def _down(given: argparse.Namespace) -> None:
    from infra import settings, stages

    wanted = settings.Settings(*_place(given), given.overlay, given.pins or settings.PINS)
    stages.down(wanted, yes=given.yes, dry_run=given.dry_run, delete_data=given.delete_data)


def _place(given: argparse.Namespace) -> tuple[str, str]:
    if not ENVIRONMENT.fullmatch(given.environment):
        raise UsageError(f"--environment {given.environment}: lower-case letters, digits and hyphens, at most 20")
    if not REGION.fullmatch(given.region):
        raise UsageError(f"--region {given.region}: no region's name looks like that; us-east-1 does")
    return given.environment, given.region


def _carried_out(work: Callable[[], None]) -> int:
    """argparse's own exit code for wrong use is 2 as well."""
    try:
        work()
    except TriplaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed here: run `make setup`, then .venv/bin/python infra/up",
            file=sys.stderr,
        )
        return UsageError.exit_code
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    return 0
