"""Helm releases at the pinned versions: what is installed -> what has to be, and back."""

import json
from typing import Any

from infra.command import parsed, run
from infra.pins import Chart
from infra.settings import Settings

TIMEOUT = "10m"
SHOWN = ("--deployed", "--failed", "--pending", "--uninstalling")  # helm 3 leaves the last two out unless asked
# helm refuses to touch a release that another helm was at; nothing says whether that one still runs.
LEFT = {
    "pending-install": "install again",
    "uninstalling": "install again",
    "pending-upgrade": "roll back and repair",
    "pending-rollback": "roll back and repair",
}


def installed(settings: Settings) -> dict[str, dict[str, Any]]:
    """Release name -> what helm says of it, those too that a helm that was killed left half-way."""
    listed = run(settings.helm("list", "--all-namespaces", *SHOWN, "--output", "json"))
    return {one["name"]: one for one in parsed(listed)}


def action(settings: Settings, chart: Chart, releases: dict[str, dict[str, Any]]) -> str:
    """What has to be done about it: install, install again, roll back and repair, upgrade, repair, or nothing (empty)."""
    if (found := releases.get(chart.name)) is None:
        return "install"
    if found["status"] in LEFT:
        return LEFT[found["status"]]
    if found["status"] != "deployed":
        return "repair"
    file_name = chart.chart.rpartition("/")[2]
    if found["chart"] != f"{file_name}-{chart.version}" or values(settings, chart) != chart.values:
        return "upgrade"
    return ""


def values(settings: Settings, chart: Chart) -> dict[str, Any]:
    """Those it was installed with."""
    named = ("get", "values", chart.name, "--namespace", chart.namespace, "--output", "json")
    return parsed(run(settings.helm(*named))) or {}


def carry_out(settings: Settings, chart: Chart, what: str) -> None:
    """One `action`. Raises TriplaneError with helm's words."""
    if what == LEFT["pending-install"]:
        uninstall(settings, chart)
    elif what == LEFT["pending-upgrade"]:
        run(settings.helm("rollback", chart.name, "--namespace", chart.namespace, "--wait", "--timeout", TIMEOUT))
    install(settings, chart)


def install(settings: Settings, chart: Chart) -> None:
    """Installed or upgraded, and its workloads up. Raises TriplaneError with helm's words."""
    repository = ("--repo", chart.repository) if chart.repository else ()
    run(
        settings.helm(
            *("upgrade", "--install", chart.name, chart.chart, *repository, "--version", chart.version),
            *("--namespace", chart.namespace, "--create-namespace", "--wait", "--timeout", TIMEOUT, "--values", "-"),
        ),
        stdin=json.dumps(chart.values),
    )


def uninstall(settings: Settings, chart: Chart) -> None:
    named = (chart.name, "--namespace", chart.namespace)
    run(settings.helm("uninstall", *named, "--wait", "--timeout", TIMEOUT))
