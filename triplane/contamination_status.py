"""What is known of a score's items: clean, contaminated or unknown, by reports of `triplane data decontamination report`.

Where artifacts are + a task and its items -> one status, with the items that were found: in all documents that the newest report looked at
(`status`), or in what a model was trained on (`of_training`). Unknown is what is said whenever nobody looked: without a report, for a task that
its index does not have, for items that are not those that were looked for, for a source that was not searched.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from triplane import artifact
from triplane.errors import Corrupt

KIND, NAME = "contamination_report", "contamination"

Name = Literal["clean", "contaminated", "unknown"]


@dataclass(frozen=True)
class Status:
    """items: ids of those that are contaminated. reference: the report; "" where there is none. preset: whose matches count. unsearched: how many
    of the items are too short for it; they are never found, and where all are, the status is unknown."""

    status: Name
    items: tuple[str, ...] = ()
    reference: str = ""
    preset: str = ""
    unsearched: int = 0

    def to_json(self) -> dict[str, Any]:
        told = {"status": self.status, "items": list(self.items), "report": self.reference, "preset": self.preset}
        return {**told, "unsearched": self.unsearched}


@dataclass(frozen=True)
class Report:
    """A committed report: by task the items looked for (`items`), found (`contaminated`), and kept by each `pair` (`kept`),
    and those too short to be found (`unsearched`)."""

    reference: str
    preset: str
    tasks: dict[str, dict[str, Any]]

    def knows(self, task: str, asked: set[str]) -> bool:
        """Whether all of these items were looked for."""
        return task in self.tasks and asked <= set(self.tasks[task]["items"])


def pair(selection: str, attributes: str) -> str:
    """What a source of a build is, as a report names it."""
    return f"{selection} {attributes}"


def reports(root: str) -> list[Report]:
    """All committed ones, newest first. Corrupt when one is damaged."""
    return [_load(root, reference) for reference in artifact.references(root, KIND, NAME)]


def of_training(known: Sequence[Report], task: str, ids: Iterable[str], trained_on: Sequence[str]) -> Status:
    """Of a task's items in what a model was trained on, a `pair` a source: each is judged by the newest report that looked at it.

    Contaminated when one source has an item; clean when every source was searched and none has.
    """
    asked = set(ids)
    able = [report for report in known if report.knows(task, asked)]
    found: set[str] = set()
    used: list[Report] = []
    for source in trained_on:
        judged = next((report for report in able if source in report.tasks[task]["kept"]), None)
        if judged is not None:
            used.append(judged)
            found |= asked & set(judged.tasks[task]["kept"][source])
    if not used:
        return Status("unknown")
    return _judged(found, used, asked, task, len(used) == len(trained_on))


def _judged(found: set[str], used: Sequence[Report], asked: set[str], task: str, is_whole: bool) -> Status:
    """`used`: the reports that were asked, the first one is named. `is_whole`: they looked at everything."""
    short = asked & {item for report in used for item in report.tasks[task]["unsearched"]}
    is_clean = is_whole and len(short) < len(asked)
    name: Name = "contaminated" if found else "clean" if is_clean else "unknown"
    return Status(name, tuple(sorted(found)), used[0].reference, used[0].preset, len(short))


def status(root: str, task: str, ids: Iterable[str], reference: str | None = None) -> Status:
    """Of a task's items (ids as exported: `part/id`, or `id`) in the documents that a report looked at; the newest by default.

    A subset of what was looked for is judged by its own items. Corrupt when the report is damaged; NotFound when the one named is not there.
    """
    if reference is None:
        known = artifact.references(root, KIND, NAME)
        if not known:
            return Status("unknown")
        reference = known[0]
    report, asked = _load(root, reference), set(ids)
    if not report.knows(task, asked):
        return Status("unknown", (), report.reference, report.preset)
    return _judged(asked & set(report.tasks[task]["contaminated"]), [report], asked, task, True)


def _load(root: str, reference: str) -> Report:
    manifest = artifact.load(root, reference)
    url = artifact.artifact_url(root, manifest.reference)
    try:
        [file] = manifest.files
        tasks = {
            task: {
                "items": list(one["items"]),
                "contaminated": list(one["contaminated"]),
                "unsearched": list(one.get("unsearched", ())),
                "kept": {name: list(items) for name, items in one["kept"].items()},
            }
            for task, one in json.loads(artifact.read(url, file)).items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corrupt(
            f"{url} is no contamination report: make it again with `triplane data decontamination report`"
        ) from error
    return Report(manifest.reference, str(manifest.recipe.get("preset", "")), tasks)
