"""`diff` counts every document that two selections decide differently, by source and rule, and names some."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from dataplane import build, difference
from triplane.errors import NotFound
from triplane.progress import Progress


@pytest.fixture(scope="module")
def roots(standing: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A root with the standing build, and the same with a stricter rule -> (root, the two selections)."""
    root = tmp_path_factory.mktemp("difference") / "root"
    shutil.copytree(standing.root, root)
    stricter = build.run(standing.make("sources.1.rules.1.value=13", "mixes=[]"), str(root), Progress())
    return str(root), standing.result.selection, stricter.selection


def counts(rows: Any, source: str) -> dict[tuple[str, str], int]:
    return {(row.fate, row.reason): row.documents for row in rows if row.source == source}


def test_a_stricter_rule_moves_what_the_funnels_say(roots: tuple[str, str, str]) -> None:
    root, first, second = roots
    found = difference.difference(root, first, second, 2)
    before, after = (build.newest_funnel(root, name).rows for name in (first, second))
    # what the rule took: documents that were kept, held out, or dropped by a later step
    by_kind = {(change.before, change.after): change for change in found.changes}
    assert {change.source for change in found.changes} == {"notes"} and {kind[1] for kind in by_kind} == {
        "dropped: too_short"
    }
    assert by_kind["kept", "dropped: too_short"].documents >= 10
    for fate, name in (("kept", "kept"), ("held_out", "dropped: held_out")):
        key = (fate, "") if fate == "kept" else ("dropped", fate)
        lost = counts(before, "notes")[key] - counts(after, "notes").get(key, 0)
        change = by_kind.get((name, "dropped: too_short"))
        assert lost == (0 if change is None else change.documents)
    taken = sum(change.documents for change in found.changes)
    assert taken == counts(after, "notes")["dropped", "too_short"] - counts(before, "notes")["dropped", "too_short"]
    assert found.unchanged + taken == 163
    tokens = {
        name: sum(r.tokens for r in rows if (r.source, r.fate) == ("notes", "kept"))
        for name, rows in ((1, before), (2, after))
    }
    assert by_kind["kept", "dropped: too_short"].tokens == tokens[1] - tokens[2] > 0


def test_examples_are_the_first_of_each_change_and_the_way_back_is_the_reverse(
    roots: tuple[str, str, str], standing: Any
) -> None:
    root, first, second = roots
    found = difference.difference(root, first, second, 2)
    for one in found.examples:
        line = (standing.sources / "notes" / one.shard).read_text().splitlines()[one.line - 1]
        assert f'"id": "{one.id}"' in line
    kept = [one for one in found.examples if one.before == "kept"]
    assert len(kept) == 2 and [one.line for one in kept] == sorted(one.line for one in kept)
    back = difference.difference(root, second, first, 0)
    swapped = [dataclasses.replace(change, before=change.after, after=change.before) for change in found.changes]
    assert sorted(back.changes, key=str) == sorted(swapped, key=str) and back.examples == ()
    assert difference.difference(root, first, first, 2).changes == ()
    text = difference.table(found)
    assert text.startswith(f"{first} -> {second}: {found.unchanged} documents are decided as before")
    assert f"notes {kept[0].shard}:{kept[0].line} {kept[0].id}: kept -> dropped: too_short" in text


def test_documents_of_one_build_alone_are_absent_in_the_other(standing: Any, tmp_path: Path) -> None:
    root, folder = (
        str(shutil.copytree(standing.root, tmp_path / "root")),
        shutil.copytree(standing.sources, tmp_path / "sources"),
    )
    (folder / "prose" / "part-00001.jsonl").write_text('{"id": "new", "text": "one new document instead of forty"}\n')
    (folder / "notes" / "part-00001.jsonl").unlink()
    overrides = [f"sources.{n}.documents={folder}/{name}" for n, name in enumerate(("prose", "notes"))]
    other = build.run(standing.make(*overrides, "held_out_fraction=0.0", "mixes=[]"), root, Progress())
    found = difference.difference(root, standing.result.selection, other.selection, 1)
    gone = [change for change in found.changes if change.after == "absent"]
    assert sum(change.documents for change in gone if change.source == "prose") == 40
    assert sum(change.documents for change in gone if change.source == "notes") == 21
    new = [change for change in found.changes if change.before == "absent"]
    assert [(change.source, change.after, change.documents, change.bytes) for change in new] == [
        ("prose", "kept", 1, 33)
    ]
    assert [one.id for one in found.examples if one.before == "absent"] == ["new"]
    with pytest.raises(NotFound):
        difference.difference(root, "absent", "tiny", 1)
