"""The two ways: up is validate -> plan -> apply -> verify, down is the reverse of apply. Each stops at the first failure.

Both may be run again at any time: what is as it should be is left alone, and what failed half-way is finished.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from infra import bucket, charts, overlay, pins, plan, stacks, validate
from infra.command import parsed, require, run
from infra.console import confirm, say, table
from infra.pins import Pins
from infra.plan import Plan
from infra.settings import Settings
from infra.stacks import ChangeSet
from infra.verify import verify
from triplane.errors import TriplaneError, UsageError

USABLE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")  # of a stack: its cluster can be reached


def up(settings: Settings, *, yes: bool, dry_run: bool, foundation_only: bool) -> None:
    """Raises UsageError, Refused, LostRace or TriplaneError: one sentence, and the stage it came from is the last one printed."""
    require(("aws",) if foundation_only else ("aws", "kubectl", "helm"))
    say("validate: templates, manifests, policy and pins")
    validate.require(settings, foundation_only)
    who = caller(settings)
    say(f"plan: {settings.name} in {settings.region}, as {who}")
    if foundation_only:
        _foundation_only(settings, yes, dry_run)
        return
    pinned = pins.load(settings.pins)
    objects = overlay.pinned(overlay.render(settings.overlay), pinned.images)
    made = plan.make(settings, pinned, objects)
    with _discarded(settings, made) as left:
        plan.show(settings, made)
        if dry_run:
            say("dry run: nothing was changed")
            return
        if made.is_empty:
            say("apply: nothing to change")
        elif not confirm(f"Apply this to {settings.name}?", yes):
            raise UsageError("not confirmed: nothing was changed")
        else:
            apply(settings, pinned, objects, made, left)
    root = stacks.outputs(stacks.describe(settings, settings.stack("foundation")))["RootUrl"]
    verify(settings, pinned, root)
    say(f"done: {settings.name} is up; the root of every command is {root}")


def caller(settings: Settings) -> str:
    """Raises TriplaneError where there are no credentials, or none that are valid."""
    try:
        return parsed(run(settings.aws("sts", "get-caller-identity")))["Arn"]
    except TriplaneError as error:
        raise TriplaneError(
            f"AWS does not know who you are (aws configure sso, then aws sso login): {error}"
        ) from error


def _foundation_only(settings: Settings, yes: bool, dry_run: bool) -> None:
    made = Plan(plan.foundation(settings))
    with _discarded(settings, made) as left:
        plan.show_stack(settings.stack("foundation"), made.foundation)
        if made.foundation is None:
            say("apply: nothing to change")
        elif dry_run:
            say("dry run: nothing was changed")
            return
        elif confirm(f"Create or change {settings.stack('foundation')}?", yes):
            _execute(settings, made.foundation, left)
        else:
            raise UsageError("not confirmed: nothing was changed")
    made_of = stacks.outputs(stacks.describe(settings, settings.stack("foundation")))
    table("push the images here, then write their digests into infra/pins.yaml", _repositories(made_of))


def _repositories(outputs: dict[str, str]) -> list[tuple[str, str]]:
    return [("triplane-spark", outputs["SparkRepository"]), ("triplane-ray", outputs["RayRepository"])]


@contextmanager
def _discarded(settings: Settings, made: Plan) -> Iterator[list[ChangeSet]]:
    """Change sets that are still in the list at the end are discarded, however it ends."""
    left = made.change_sets
    try:
        yield left
    finally:
        for one in left:
            with suppress(TriplaneError):  # the first failure is the one to tell
                stacks.discard(settings, one)


def apply(settings: Settings, pinned: Pins, objects: list[dict[str, Any]], made: Plan, left: list[ChangeSet]) -> None:
    """In the order in which each stands on the one before."""
    if made.foundation:
        _execute(settings, made.foundation, left)
    if made.cluster_waits:
        made.cluster = plan.cluster(settings, pinned.kubernetes)
        left += [made.cluster] if made.cluster else []
        plan.show_stack(settings.stack("cluster"), made.cluster)
    if made.cluster:
        _execute(settings, made.cluster, left)
        plan.connect(settings)
    if overlay.is_new(settings):  # Spark's operator wants it there
        overlay.apply(settings, overlay.namespaces(objects))
        say("apply: the namespace")
    for chart, what in made.charts:
        charts.carry_out(settings, chart, what)
        say(f"apply: {what} {chart.name} {chart.version}")
    if overlay.ensure_metrics_token(settings):
        say("apply: a token for the metrics")
    if made.platform:
        overlay.apply(settings, objects)
        say(f"apply: the platform, {len(made.platform)} objects")


def _execute(settings: Settings, one: ChangeSet, left: list[ChangeSet]) -> None:
    left.remove(one)
    patience = ", about a quarter of an hour" if one.creates and one.stack == settings.stack("cluster") else ""
    say(f"apply: {one.stack}, {len(one.changes)} resources{patience}")
    stacks.execute(settings, one)


def down(settings: Settings, *, yes: bool, dry_run: bool, delete_data: str) -> None:
    """Platform, charts, cluster, foundation; the bucket and its key only if its name was typed. Raises as `up` does."""
    require(("aws", "kubectl", "helm"))
    say(f"plan: take {settings.name} in {settings.region} down, as {caller(settings)}")
    standing = {part: stacks.describe(settings, settings.stack(part)) for part in ("cluster", "foundation")}
    kept = stacks.outputs(standing["foundation"]).get("BucketName", "")
    _require_typed(settings, delete_data, kept)
    _require_at_rest(standing)
    rows = [("Delete", stack["StackName"]) for stack in standing.values() if stack]
    rows += [("Delete", f"s3://{delete_data}, every version of every object")] if delete_data else []
    table("to be taken down", rows)
    releases = _releases(settings, standing["cluster"])
    table("jobs that this ends", [(one,) for one in overlay.running_jobs(settings, releases)])
    if not rows or dry_run:
        say("dry run: nothing was changed" if rows else "nothing to take down")
        return
    if not confirm(f"Delete this of {settings.name}?", yes):
        raise UsageError("not confirmed: nothing was changed")
    _take_down(settings, standing, releases)
    if delete_data:
        say(f"down: {bucket.delete(settings, delete_data)} object versions and s3://{delete_data}; its key in 30 days")
    elif kept:
        say(f"down: kept s3://{kept}, its access logs and its key; infra/up --bucket {kept} takes them up again")
    say(f"done: {settings.name} is down")


def _require_typed(settings: Settings, typed: str, kept: str) -> None:
    if not typed:
        return
    if kept and typed != kept:
        raise UsageError(f"--delete-data {typed}: the bucket is {kept}; type its name to delete what is in it")
    if not bucket.exists(settings, typed):
        raise UsageError(f"--delete-data {typed}: there is no such bucket")
    bucket.require_ours(settings, typed)


def _require_at_rest(standing: Mapping[str, Any]) -> None:
    """What failed may be taken down, what somebody changes at this moment may not."""
    for stack in filter(None, standing.values()):
        if stack["StackStatus"].endswith("_IN_PROGRESS"):
            stacks.require_at_rest(stack)


def _releases(settings: Settings, cluster: Mapping[str, Any] | None) -> Collection[str]:
    """Names of the charts in the cluster; none where its creation did not get that far."""
    if cluster is None or cluster["StackStatus"] not in USABLE:
        return ()
    plan.connect(settings)
    return charts.installed(settings).keys()


def _take_down(settings: Settings, standing: Mapping[str, Any], releases: Collection[str]) -> None:
    cluster = standing["cluster"]
    if cluster and cluster["StackStatus"] in USABLE:
        overlay.delete(settings, overlay.render(settings.overlay), has_kueue="kueue" in releases)
        say("down: the platform")
        for chart in reversed(pins.load(settings.pins).charts):
            if chart.name in releases:
                charts.uninstall(settings, chart)
                say(f"down: {chart.name}")
    for part, stack in standing.items():
        if stack:
            stacks.delete(settings, stack)
            say(f"down: {settings.stack(part)}")
