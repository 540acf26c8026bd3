"""What infra/up is about to change, read from AWS and the cluster -> a plan, printed as tables. Planning changes nothing.

Before the foundation stands the cluster's change set cannot be asked for, and before the cluster stands neither can helm or kubectl:
their part then lists what the files hold, as additions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra import bucket, charts, overlay, stacks, template
from infra.command import run
from infra.console import say, table
from infra.pins import Chart, Pins
from infra.settings import TEMPLATES, Settings
from infra.stacks import Change, ChangeSet
from triplane.errors import UsageError

CLOSED = (
    "plan: the cluster will answer inside its own network only, and what comes after it has to run there; "
    "to go on from here, name your network: EndpointPublicCidrs in --parameters"
)
PASSED_ON = ("PrivateSubnetIds", "KeyArn", "DataRoleArn", "TrainRoleArn", "EvalRoleArn")


@dataclass
class Plan:
    """`cluster_waits`: its change set can only be asked for once the foundation stands. `objects`: of the platform, or what differs."""

    foundation: ChangeSet | None
    cluster: ChangeSet | None = None
    cluster_waits: bool = False
    charts: tuple[tuple[Chart, str], ...] = ()
    platform: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.foundation or self.cluster or self.cluster_waits or self.charts or self.platform)

    @property
    def change_sets(self) -> list[ChangeSet]:
        return [one for one in (self.cluster, self.foundation) if one]


def foundation(settings: Settings) -> ChangeSet | None:
    """Raises UsageError for a bucket that cannot be used, or for another than the one that stands."""
    name = settings.stack("foundation")
    standing = stacks.describe(settings, name)
    known = stacks.parameters(standing)
    if standing is None:
        known = bucket.adopted(settings)
    elif settings.bucket not in ("", known["BucketName"]):
        raise UsageError(f"{name} has the bucket {known['BucketName']}, not {settings.bucket}: leave --bucket out")
    return _propose(settings, "foundation", known)


def cluster(settings: Settings, kubernetes: str) -> ChangeSet | None:
    """Needs the foundation's outputs."""
    made = stacks.outputs(stacks.describe(settings, settings.stack("foundation")))
    known = stacks.parameters(stacks.describe(settings, settings.stack("cluster")))
    passed = {key: made[key] for key in PASSED_ON}
    return _propose(settings, "cluster", known | passed | {"KubernetesVersion": kubernetes})


def _propose(settings: Settings, part: str, known: Mapping[str, str]) -> ChangeSet | None:
    declared = template.parameters(TEMPLATES[part])
    values = {**known, **settings.parameters.get(part, {}), "EnvironmentName": settings.environment}
    kept = {name: value for name, value in values.items() if name in declared}
    return stacks.propose(settings, settings.stack(part), TEMPLATES[part], kept)


def make(settings: Settings, pinned: Pins, objects: list[dict[str, Any]]) -> Plan:
    """Everything that would change."""
    plan = Plan(foundation(settings))
    standing = stacks.describe(settings, settings.stack("foundation"))
    plan.cluster_waits = standing is None or plan.foundation is not None
    if not plan.cluster_waits:
        plan.cluster = cluster(settings, pinned.kubernetes)
    if stacks.describe(settings, settings.stack("cluster")) is None:
        plan.charts = tuple((chart, "install") for chart in pinned.charts)
        plan.platform = tuple(map(_title, objects))
        return plan
    connect(settings)
    plan.charts, plan.platform = inside(settings, pinned, objects)
    return plan


def inside(
    settings: Settings, pinned: Pins, objects: list[dict[str, Any]]
) -> tuple[tuple[tuple[Chart, str], ...], tuple[str, ...]]:
    """Charts that have to change, and objects of the platform that differ, of a cluster that can be reached."""
    releases = charts.installed(settings)
    pending = tuple((one, what) for one in pinned.charts if (what := charts.action(settings, one, releases)))
    # a kind that an operator has yet to bring cannot be compared with anything
    if overlay.is_new(settings) or any(what.startswith("install") for _, what in pending):
        return pending, tuple(map(_title, objects))
    return pending, tuple(overlay.differences(settings, objects))


def connect(settings: Settings) -> None:
    """Tells kubectl and helm of the cluster, by the name of the context."""
    run(settings.aws("eks", "update-kubeconfig", "--name", settings.name, "--alias", settings.name))


def show(settings: Settings, plan: Plan) -> None:
    show_stack(settings.stack("foundation"), plan.foundation)
    show_stack(settings.stack("cluster"), plan.cluster)
    if plan.cluster_waits:
        rows = [("Add or change", *one) for one in template.resources(TEMPLATES["cluster"]).items()]
        table(f"{settings.stack('cluster')} (from its template: exact once the foundation stands)", rows)
    if (plan.cluster or plan.cluster_waits) and not _cluster_parameters(settings)["EndpointPublicCidrs"]:
        say(CLOSED)
    table("charts", [(what.capitalize(), one.name, one.version) for one, what in plan.charts])
    table("platform", [("Apply", one) for one in plan.platform])
    if settings.prices is not None:
        table("cost an hour, by the prices given", cost(settings))


def show_stack(name: str, change_set: ChangeSet | None) -> None:
    table(name, [_row(one) for one in change_set.changes] if change_set else [])


def cost(settings: Settings) -> list[tuple[str, str, str]]:
    """(what, how many of what, price) of the nodes that the parameters ask for now; what has no price says so."""
    values = _cluster_parameters(settings)
    bought = [
        ("control plane", "eks-cluster", 1),
        ("NAT gateway", "nat-gateway", 1),
        ("core nodes", values["CoreInstanceTypes"].split(",")[0], int(values["CoreSize"])),
        ("data nodes", values["DataInstanceTypes"].split(",")[0], int(values["DataSize"])),
        ("gpu nodes", values["GpuInstanceType"], int(values["GpuSize"])),
    ]
    prices = settings.prices or {}
    rows = [
        (what, f"{count} x {kind}", f"{count * prices[kind]:.2f}" if kind in prices else "no price given")
        for what, kind, count in bought
    ]
    total = sum(count * prices.get(kind, 0.0) for _, kind, count in bought)
    return [*rows, ("together", "", f"{total:.2f}")]


def _cluster_parameters(settings: Settings) -> dict[str, str]:
    """As they will be: given now, else as the stack has them, else the template's own."""
    declared = template.parameters(TEMPLATES["cluster"])
    values = {name: str(one.get("Default", "")) for name, one in declared.items()}
    values |= stacks.parameters(stacks.describe(settings, settings.stack("cluster")))
    return {**values, **settings.parameters.get("cluster", {})}


def _row(change: Change) -> tuple[str, str, str]:
    return change.action, change.resource, change.type


def _title(one: Mapping[str, Any]) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"
