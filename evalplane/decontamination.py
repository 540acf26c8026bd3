"""Whether the items of an evaluation are in what its model was trained on, and what follows from it (fault row 29).

In: a model's lineage, the reports of the root, the tasks with their items. Out: a status a task; contaminated ones are refused unless it is said that
they may be, unknown ones only where it is said that all must be clean.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from evalplane import lineage
from triplane import contamination_status
from triplane.contamination_status import Report, Status
from triplane.errors import Refused

OnContamination = Literal["refuse", "allow", "require_clean"]
NAMED = 3  # tasks of a sentence


def statuses(
    root: str,
    url: str,
    tasks: Iterable[str],
    ids: Callable[[str], list[str]],
    reports: Callable[[str], list[Report]] = contamination_status.reports,
) -> dict[str, Status]:
    """By task; `ids` reads a task's items, and is asked only where a report could know them. A task in one format, or in full, is the same
    task to a report."""
    trained_on = lineage.sources(root, url)
    known = reports(root) if trained_on else []
    return {task: _status(known, task, ids, trained_on) for task in tasks}


def updated(metadata: Mapping[str, Any], now: Mapping[str, Status]) -> dict[str, Any]:
    """The metadata of a committed evaluation with what is known of its items by now: somebody may have looked since it was scored."""
    known = {task: one.to_json() for task, one in now.items() if one.status != "unknown"}
    return {**metadata, "decontamination": {**metadata["decontamination"], **known}}


def _status(known: list[Report], task: str, ids: Callable[[str], list[str]], trained_on: list[str]) -> Status:
    name = task.partition(":")[0]
    if not any(report.knows(name, set()) for report in known):
        return Status("unknown")
    return contamination_status.of_training(known, name, ids(task), trained_on)


def check(found: Mapping[str, Status], model: str, policy: OnContamination) -> None:
    """Refused for contaminated tasks under `refuse`, for all that are not clean under `require_clean`."""
    bad = {task: one for task, one in found.items() if one.status == "contaminated"}
    if bad and policy != "allow":
        counts = [f"{len(one.items)} of {task}" for task, one in list(bad.items())[:NAMED]]
        more = f" and of {len(bad) - NAMED} more tasks" if len(bad) > NAMED else ""
        raise Refused(
            f"items that are evaluated are in what {model} was trained on: {', '.join(counts)}{more} ({next(iter(bad.values())).reference}). "
            "Train on a build that drops or cuts them, or score it with --allow-contaminated: the score says so"
        )
    unknown = [task for task, one in found.items() if one.status == "unknown"]
    if unknown and policy == "require_clean":
        raise Refused(
            f"nobody looked whether the items of {', '.join(unknown[:NAMED])}{' and others' if len(unknown) > NAMED else ''} are in what {model} "
            "was trained on: tag its sources with contamination and run `triplane data decontamination report`, or leave out --require-clean"
        )
