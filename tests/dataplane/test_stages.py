"""A stage's rate and core-hours follow from its bytes and the CPU seconds of its tasks; a real build reports every stage that ran."""

from typing import Any

from dataplane import build, stages
from dataplane.stages import Stage
from triplane.progress import Bar, Progress


def test_rate_and_core_hours() -> None:
    stage = Stage("tag", 90_000_000, 1.8, 4.0)
    assert stage.mb_per_s_per_core == 50.0 and stage.core_hours == 0.0005
    assert stage.to_json() == {
        "name": "tag",
        "bytes": 90_000_000,
        "cpu_seconds": 1.8,
        "seconds": 4.0,
        "mb_per_s_per_core": 50.0,
        "core_hours": 0.0005,
    }
    assert Stage("ingest", 5, 0.0, 0.0).mb_per_s_per_core == 0.0


def test_the_table_sums_and_bars_of_other_units_are_left_out() -> None:
    times = iter([0.0, 0.0])
    bars = [
        Bar(name, 10, unit, lambda _: None, lambda: next(times)) for name, unit in (("tag", "bytes"), ("x", "files"))
    ]
    bars[0].ended = 2.0
    bars[0].advance(10)
    bars[0].spend(1.5)
    bars[0].spend(0.5)
    found = stages.of_bars(bars)
    assert found == (Stage("tag", 10, 2.0, 2.0),)
    assert stages.table([*found, Stage("select", 2_000_000, 1.0, 1.0)]).splitlines() == [
        "stage   read  CPU s  MB/s a core  core-hours",
        "tag      10B    2.0          0.0      0.0006",
        "select  2 MB    1.0          2.0      0.0003",
        "all             3.0                   0.0008",
    ]
    assert stages.table([]) == ""


def test_a_build_reports_what_it_did_and_nothing_when_nothing_was_missing(standing: Any) -> None:
    ran = {stage.name: stage for stage in standing.result.stages}
    assert list(ran) == ["ingest", "tag", "select", "tokenize", "shuffle"]
    assert all(stage.bytes > 0 and 0 < stage.cpu_seconds < 60 for stage in ran.values())
    assert ran["ingest"].bytes == ran["tag"].bytes == ran["tokenize"].bytes
    again = build.run(standing.make(), str(standing.root), Progress())
    assert again.stages == () and again == standing.result
    assert "stages" in again.to_json()
