"""The table of scores, read as a reader would."""

from typing import Any

from evalplane import report


def score(value: float, stderr: float | None, metric: str = "acc_raw", **more: Any) -> dict[str, Any]:
    one = {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "num_items": 10,
        "num_overlong": 0,
        "num_shots_used": 5,
        "reason": None,
    }
    one |= more
    return {**one, "format": "mc", "formats": {"mc": one}}


def evaluation(name: str, limit: int | None = None, **scores: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"name": name}, "suite": "s", "limit": limit, "scores": scores}


def test_a_row_a_task_and_a_column_a_model() -> None:
    table = report.markdown(
        [
            evaluation("small", arc_easy=score(0.25, 0.0137), held_out=score(1.23456, 0.01, "bits_per_byte")),
            evaluation("large", arc_easy=score(0.5, None)),
        ]
    )
    assert table.splitlines() == [
        "| task | small | large |",
        "|---|---|---|",
        "| arc_easy | 25.0 ± 1.4 % (acc_raw, mc, n=10) | 50.0 % (acc_raw, mc, n=10) |",
        "| held_out | 1.235 ± 0.010 (bits_per_byte, mc, n=10) |  |",
    ]


def test_what_lessens_a_score_is_said_below_it() -> None:
    lessened = score(0.25, 0.1, num_overlong=3, num_shots_used=0, reason="too long")
    table = report.markdown([evaluation("small", 10, arc_easy=lessened)])
    assert "| task | small (first 10) |" in table
    assert "- arc_easy mc, small (first 10): 0 shots: too long" in table
    assert "- arc_easy mc, small (first 10): 3 items do not fit the model's context and are not scored" in table


def test_nothing_committed() -> None:
    assert report.markdown([]) == "No evaluation is committed under this root.\n"
