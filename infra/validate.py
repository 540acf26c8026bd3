"""Everything that can be wrong before anything is sent: templates, manifests, policy and pins -> a list of sentences.

Nothing here talks to AWS or to a cluster.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra import overlay, pins
from infra.settings import JOBS, TEMPLATES, Settings
from triplane.errors import Refused, UsageError

TEMPLATE_BYTES = 51_200  # CloudFormation's limit for a template that is not on S3
ANY_DIGEST = f"sha256:{'0' * 64}"


def require(settings: Settings, foundation_only: bool) -> None:
    """Raises Refused naming every mistake. The foundation needs no images and no charts: for it alone they may be unpinned."""
    found = templates(tuple(TEMPLATES.values()), settings.region)
    if not foundation_only:
        pinned = pins.load(settings.pins)
        found += pins.unpinned(settings.pins) + pins.loose(pinned) + manifests(settings, pinned.images)
    if found:
        listed = "\n".join(f"  {one}" for one in found)
        raise Refused(f"{len(found)} mistakes were found and nothing was sent:\n{listed}")


def oversized(paths: tuple[Path, ...]) -> list[str]:
    return [
        f"{path}: has {size:,} bytes and CloudFormation takes {TEMPLATE_BYTES:,}: split it"
        for path in paths
        if (size := path.stat().st_size) > TEMPLATE_BYTES
    ]


def templates(paths: tuple[Path, ...], region: str) -> list[str]:
    """What cfn-lint finds for the region, templates over CloudFormation's size, and what our policy forbids."""
    found = oversized(paths)
    try:
        from cfnlint.api import ManualArgs, lint_file

        from jobs.manifests import policy_cloud
    except ImportError as error:
        raise _not_installed(error.name) from error
    for path in paths:
        found += [
            f"{path}:{one.linenumber}: {one.message} ({one.rule.id})"
            for one in lint_file(path, ManualArgs(regions=[region]))
        ]
    return found + [str(one) for one in policy_cloud.findings(paths)]


def _not_installed(what: str | None) -> UsageError:
    return UsageError(f"{what} is not installed here: run `make setup`, then .venv/bin/python infra/up ...")


def manifests(settings: Settings, images: Mapping[str, str]) -> list[str]:
    """What the repository's own check and policy find in the overlay and in the job templates, with file and line.

    An image that is still unpinned is pins' finding, and once is enough: here it counts as any digest.
    """
    try:
        from jobs.manifests import check, policy
    except ImportError as error:
        raise _not_installed(error.name) from error
    paths = [settings.overlay, JOBS]
    found = check.findings(paths)
    pinned = {name: image if pins.is_pinned(image) else f"{name}@{ANY_DIGEST}" for name, image in images.items()}
    for document in check.read(paths)[0]:
        meant = replace(document, value=overlay.substituted(document.value, pinned))
        found += [document.finding(at, sentence) for at, sentence in policy.mistakes(meant)]
    return [str(one) for one in sorted(set(found))]
