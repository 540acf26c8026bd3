"""What is known of a score's items: clean, contaminated or unknown, by a report of `triplane data decontamination report`.

Where artifacts are + a task and its items -> one status, with the items that were found in the training documents. Unknown is what is said whenever
nobody looked: without a report, for a task that its index does not have, for items that are not those that were looked for.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from triplane import artifact
from triplane.errors import Corrupt

KIND, NAME = "corpus", "contamination"


@dataclass(frozen=True)
class Status:
    """items: ids of those that are contaminated. reference: the report; "" where there is none. preset: whose matches count."""

    status: Literal["clean", "contaminated", "unknown"]
    items: tuple[str, ...] = ()
    reference: str = ""
    preset: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "items": list(self.items), "report": self.reference, "preset": self.preset}


def status(root: str, task: str, ids: Iterable[str], reference: str | None = None) -> Status:
    """Of a task's items (ids as exported: `part/id`, or `id`) in the training documents that a report looked at; the newest by default.

    A subset of what was looked for is judged by its own items. Corrupt when the report is damaged; NotFound when the one named is not there.
    """
    if reference is None:
        known = artifact.references(root, KIND, NAME)
        if not known:
            return Status("unknown")
        reference = known[0]
    manifest = artifact.load(root, reference)
    tasks = _tasks(root, manifest)
    asked, said = set(ids), tasks.get(task)
    preset = str(manifest.recipe.get("preset", ""))
    if said is None or not asked <= set(said["items"]):
        return Status("unknown", (), manifest.reference, preset)
    found = tuple(sorted(asked & set(said["contaminated"])))
    return Status("contaminated" if found else "clean", found, manifest.reference, preset)


def _tasks(root: str, manifest: artifact.Manifest) -> dict[str, dict[str, list[str]]]:
    url = artifact.artifact_url(root, manifest.reference)
    try:
        [file] = manifest.files
        tasks = json.loads(artifact.read(url, file))
        return {
            task: {"items": list(one["items"]), "contaminated": list(one["contaminated"])}
            for task, one in tasks.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corrupt(
            f"{url} is no contamination report: make it again with `triplane data decontamination report`"
        ) from error
