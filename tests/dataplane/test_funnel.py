"""The funnel adds up, says where it does not, and prints."""

import dataclasses

import pytest

from dataplane import funnel
from dataplane.funnel import FunnelRow
from triplane.errors import Refused

ROWS = [
    FunnelRow("web", "in", "", 10, 1000, 250),
    FunnelRow("web", "kept", "", 6, 700, 180),
    FunnelRow("web", "dropped", "short", 2, 100, 20),
    FunnelRow("web", "dropped", "exact_duplicate", 1, 200, 50),
    FunnelRow("web", "quarantined", "malformed_json", 1, 0, 0),
    FunnelRow("code", "in", "", 2, 50, 10),
    FunnelRow("code", "kept", "", 2, 50, 10),
]


def test_sums_by_source_fate_and_reason_in_a_fixed_order() -> None:
    halves = [FunnelRow("web", "in", "", 4, 400, 100), FunnelRow("web", "in", "", 6, 600, 150)]
    assert funnel.total([*halves, *ROWS[:0:-1]]) == [
        FunnelRow("web", "in", "", 10, 1000, 250),
        ROWS[1],
        ROWS[3],
        ROWS[2],
        ROWS[4],
        ROWS[5],
        ROWS[6],
    ]


def test_what_adds_up_is_accepted_and_summed_over_sources() -> None:
    assert funnel.gaps(ROWS) == []
    checked = funnel.checked(ROWS)
    assert sorted(checked, key=str) == sorted(ROWS, key=str)
    assert funnel.overall(checked)[:2] == [
        FunnelRow("all", "in", "", 12, 1050, 260),
        FunnelRow("all", "kept", "", 8, 750, 190),
    ]


@pytest.mark.parametrize("unit", ["documents", "bytes", "tokens"])
@pytest.mark.parametrize("row", range(5))
def test_any_count_that_is_off_by_one_is_refused(unit: str, row: int) -> None:
    broken = list(ROWS)
    broken[row] = dataclasses.replace(broken[row], **{unit: getattr(broken[row], unit) + 1})
    with pytest.raises(Refused, match=rf"does not add up \(source web: \d+ {unit} came in, \d+ are accounted for\)"):
        funnel.checked(broken)


def test_a_lost_row_is_refused() -> None:
    with pytest.raises(Refused, match="source web: 10 documents came in, 9 are accounted for"):
        funnel.checked([*ROWS[:4], *ROWS[5:]])


def test_written_tokens_must_be_planned_tokens_with_one_end_of_text_a_document() -> None:
    funnel.check_tokens("web", 6, 186, ROWS)
    with pytest.raises(Refused, match="source web: 6 documents and 186 tokens were planned, 6 and 185 were written"):
        funnel.check_tokens("web", 6, 185, ROWS)
    with pytest.raises(Refused, match="planned, 5 and 186"):
        funnel.check_tokens("web", 5, 186, ROWS)


def test_table_has_a_line_a_row_and_the_totals() -> None:
    lines = funnel.table(funnel.checked(ROWS)).splitlines()
    assert lines[0].split() == ["source", "fate", "documents", "bytes", "tokens"]
    assert next(line for line in lines if line.startswith("all")).split() == ["all", "in", "12", "1,050", "260"]
    assert any(line.split() == ["web", "dropped:", "short", "2", "100", "20"] for line in lines)


def test_json_round_trip() -> None:
    assert funnel.from_json(funnel.to_json(ROWS)) == ROWS
