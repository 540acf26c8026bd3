"""The report of a run's checkpoints on storage: one place, of which the newest by tokens seen is the one that counts.

Evaluations -> `reports/RUN@VERSION/SUITE@VERSION/tokens-T-N.json`: of N checkpoints up to T tokens, made visible by one put-if-absent. The highest
name is the report: no clock decides, and a watcher that was stopped and comes back with an older one replaces nothing. `report.json`,
`report.md` and `report.html` beside it are copies for people; whoever writes them looks again afterwards and puts the newest there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evalplane import report, report_page
from evalplane.run import KIND, Plan
from triplane import hashing, storage
from triplane.errors import Corrupt, NotFound

FOLDER = "reports"
KEPT = 3  # of the committed reports: the newest, and what a slow reader may be at
_NAME = re.compile(r"tokens-[0-9]{15,}-[0-9]{6,}\.json")


@dataclass(frozen=True)
class Report:
    """What is known of a run's checkpoints: evaluations as `report.load_scores` gives them, ascending by tokens, and regressions in words."""

    evaluations: Mapping[int, dict[str, Any]]
    regressions: Mapping[int, Sequence[str]]

    @property
    def name(self) -> str:
        """Sorts by the newest checkpoint's tokens, then by how many there are."""
        return f"tokens-{max(self.evaluations):015d}-{len(self.evaluations):06d}.json"


def place(made: Plan, run: str) -> str:
    """The folder of a run's report on a suite. Another version of a task, other data or another limit is another report."""
    header = json.loads(made.draft.header)
    asked = {**header, "inputs": {key: value for key, value in header["inputs"].items() if key != "model"}}
    version = hashing.identity({"kind": KIND, **asked})[:12]
    return storage.join(made.root, FOLDER, run.partition("/")[2], f"{made.suite.name}@{version}")


def newest(where: str) -> Report:
    """The report that counts, an empty one where none is. Raises Corrupt."""
    names = _names(where)
    while names:
        try:
            return _read(storage.join(where, names[-1]))
        except NotFound:
            names = _names(where)  # a newer one came, and this one went
    return Report({}, {})


def publish(where: str, made: Report) -> str:
    """Commits a report, together with what other watchers knew and this one did not, and puts the newest where people look -> the URL of
    its page. An older report changes nothing."""
    while (whole := _together([*_kept(where), made])).evaluations.keys() - newest(where).evaluations.keys():
        storage.put_if_absent(storage.join(where, whole.name), _to_bytes(whole))
    shown = ""
    while (name := _names(where)[-1]) != shown:
        _show(where, newest(where))
        shown = name
    for old in _names(where)[:-KEPT]:
        storage.delete(storage.join(where, old))
    return storage.join(where, "report.html")


def _kept(where: str) -> list[Report]:
    """All that is still there, as a slow writer may have put a higher name without what another put meanwhile."""
    found = []
    for name in _names(where):
        with suppress(NotFound):
            found.append(_read(storage.join(where, name)))
    return found


def _together(reports: Sequence[Report]) -> Report:
    evaluations = {tokens: one for made in reports for tokens, one in made.evaluations.items()}
    regressions = {tokens: of for made in reports for tokens, of in made.regressions.items()}
    return Report(dict(sorted(evaluations.items())), dict(sorted(regressions.items())))


def is_shown(where: str) -> bool:
    """Whether the copies are of the newest report: they are not where a watcher was killed between the two."""
    names = _names(where)
    try:
        return not names or storage.read(storage.join(where, "report.json")) == storage.read(
            storage.join(where, names[-1])
        )
    except NotFound:
        return False


def _names(where: str) -> list[str]:
    return [name for name in storage.list_names(where) if _NAME.fullmatch(name)]


def _show(where: str, made: Report) -> None:
    """The JSON comes last: where it is the newest, so are the others."""
    evaluations = list(made.evaluations.values())
    told = [f"- at {tokens} tokens, worse than before: {one}" for tokens, of in made.regressions.items() for one in of]
    markdown = report.markdown(evaluations) + "".join(f"{line}\n" for line in told)
    storage.put(storage.join(where, "report.md"), markdown.encode())
    storage.put(storage.join(where, "report.html"), report_page.page(evaluations).encode())
    storage.put(storage.join(where, "report.json"), _to_bytes(made))


def _to_bytes(made: Report) -> bytes:
    """Without times: of the same evaluations, the same bytes."""
    known = {str(tokens): made.evaluations[tokens] for tokens in sorted(made.evaluations)}
    worse = {str(tokens): list(made.regressions[tokens]) for tokens in sorted(made.regressions)}
    return (json.dumps({"evaluations": known, "regressions": worse}, indent=1, ensure_ascii=False) + "\n").encode()


def _read(url: str) -> Report:
    try:
        found = json.loads(storage.read(url))
        evaluations = {int(tokens): dict(one) for tokens, one in found["evaluations"].items()}
        return Report(evaluations, {int(tokens): list(of) for tokens, of in found["regressions"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{url} is not a report: remove it, and the next watcher writes it anew") from error
