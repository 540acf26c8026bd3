"""The table of scores, read as a reader would."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from evalplane import published, report, training
from triplane import artifact
from triplane.errors import UsageError
from triplane.lm.model import ModelConfig, num_parameters


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
    unknown = {"status": "unknown", "items": [], "report": "", "preset": ""}
    nobody_looked = dict.fromkeys(scores, unknown)
    return {"model": {"name": name}, "suite": "s", "limit": limit, "scores": scores, "decontamination": nobody_looked}


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
        "",
        "- items in the training documents, small: unknown: arc_easy, held_out",
        "- items in the training documents, large: unknown: arc_easy",
    ]


def test_whether_the_items_were_trained_on_is_always_said() -> None:
    one = evaluation("small", arc_easy=score(0.25, 0.1), piqa=score(0.5, 0.1), csqa=score(0.5, 0.1))
    one["decontamination"]["piqa"] = {"status": "contaminated", "items": ["3", "8"], "report": "", "preset": "strict"}
    one["decontamination"]["csqa"] = {"status": "clean", "items": [], "report": "", "preset": "strict"}
    said = "- items in the training documents, small: contaminated: piqa (2 items); clean: csqa; unknown: arc_easy"
    assert report.markdown([one]).splitlines()[-1] == said


def test_what_lessens_a_score_is_said_below_it() -> None:
    lessened = score(0.25, 0.1, num_overlong=3, num_shots_used=0, reason="too long")
    table = report.markdown([evaluation("small", 10, arc_easy=lessened)])
    assert "| task | small (first 10) |" in table
    assert "- arc_easy mc, small (first 10): 0 shots: too long" in table
    assert "- arc_easy mc, small (first 10): 3 items do not fit the model's context and are not scored" in table


def test_nothing_committed() -> None:
    assert report.markdown([]) == "No evaluation is committed under this root.\n"


TWO = {
    "arc_challenge": score(0.25, 0.0137, interval=[0.22, 0.28]),
    "lambada": score(1.2, 0.01, "bits_per_byte"),
}


def test_published_columns_stand_beside_ours() -> None:
    table = report.markdown([evaluation("small", **TWO)], published.named(["OLMo-2-7B", "Amber-7B"]))
    assert "| task | small | OLMo-2-7B (published) | Amber-7B (published) |" in table
    assert "| arc_challenge | 25.0 ± 1.4 % (acc_raw, mc, n=10) | 79.8 % | 44.9 % |" in table
    assert "| lambada | 1.200 ± 0.010 (bits_per_byte, mc, n=10) |  |  |" in table
    assert "- OLMo-2-7B: arXiv 2501.00656, Table 9" in table


def test_a_suite_s_mean_has_its_interval_and_the_published_average() -> None:
    mean = {"value": 0.5, "stderr": 0.01, "interval": [0.47, 0.52]}
    shown = {**evaluation("small", **TWO), "suite": report.TABLE, "mean": mean}
    shown["scores"] = {"arc_challenge": TWO["arc_challenge"]}
    table = report.markdown([shown], published.named(["OLMo-2-7B"]))
    assert f"| mean of {report.TABLE} | 50.0 % (47.0 to 52.0) | 62.9 % |" in table


def test_every_published_average_is_the_mean_of_its_ten_columns() -> None:
    """As printed: to one decimal. A slip of a digit in any of the 220 numbers shows here."""
    assert len(published.references()) == 22
    for one in published.references():
        assert list(one.scores) == list(published.columns())
        assert sum(one.scores.values()) / 10 == pytest.approx(one.average, abs=0.061), one.name


def test_a_published_name_that_is_not_there() -> None:
    assert len(published.named(["all"])) == 22
    with pytest.raises(UsageError, match="did you mean 'OLMo-2-7B'"):
        published.named(["OLMo-27B"])


def test_csv_has_a_line_a_format() -> None:
    both = score(0.3, 0.01, interval=[0.28, 0.32])
    both["formats"]["cloze"] = {**both["formats"]["mc"], "value": 0.2}
    mean = {"value": 0.3, "stderr": 0.01, "interval": None}
    text = report.as_csv([{**evaluation("small", arc_easy=both), "mean": mean}], published.named(["OLMo-2-13B"]))
    lines = list(csv.DictReader(text.splitlines()))
    ours = [(one["task"], one["format"], one["counts"], one["value"], one["low"]) for one in lines[:3]]
    assert ours == [
        ("arc_easy", "mc", "True", "0.3", "0.28"),
        ("arc_easy", "cloze", "False", "0.2", ""),
        ("mean of s", "", "True", "0.3", ""),
    ]
    assert [(one["task"], one["value"], one["flops"]) for one in lines if one["task"] == "MMLU"] == [
        ("MMLU", "0.675", "4.6e+23")
    ]
    assert len(lines) == 3 + 11


def test_json_holds_everything() -> None:
    whole = json.loads(report.as_json([evaluation("small", **TWO)], published.named(["OLMo-2-32B"])))
    assert whole["evaluations"][0]["scores"]["lambada"]["value"] == 1.2
    assert whole["published"][0]["flops"] == 1.3e24


CONFIG = ModelConfig(64, 32, 48, 2, 4, 2, pad_token_id=None, eos_token_id=0)


def commit_run(root: Path, name: str, parent: str | None = None) -> str:
    inputs = {"mix": "m", **({"parent": parent} if parent else {})}
    draft = artifact.begin(str(root), "run", name, inputs=inputs, recipe={}, stage_versions={}, version="v1")
    return draft.commit({}).reference


def commit_checkpoint(root: Path, run: str, tokens: int) -> str:
    name, url = run.removeprefix("run/").split("@")[0], f"{root}/{run}/checkpoints/tokens-{tokens:015d}"
    how = {"inputs": {}, "recipe": {}, "stage_versions": {}, "parents": [run]}
    draft = artifact.begin(str(root), "checkpoint", name, version=f"v1.tokens-{tokens:015d}", url=url, **how)
    draft.commit({"model_config": CONFIG.to_dict(), "tokens_seen": tokens})
    return url


def test_compute_counts_the_run_a_run_started_from(tmp_path: Path) -> None:
    first = commit_run(tmp_path, "pretrain")
    start = commit_checkpoint(tmp_path, first, 1000)
    second = commit_run(tmp_path, "anneal", f"checkpoint/pretrain@v1.tokens-{1000:015d}")
    url = commit_checkpoint(tmp_path, second, 50)
    found = training.of_checkpoint(str(tmp_path), url)
    assert found == training.Training("anneal@v1", 50, 1050, num_parameters(CONFIG))
    assert found.flops == 6.0 * num_parameters(CONFIG) * 1050
    alone = training.of_checkpoint(str(tmp_path), start)
    assert alone is not None and alone.tokens == 1000
    assert training.of_checkpoint(str(tmp_path), str(tmp_path / "nothing")) is None
    commit_run(tmp_path, "souped", "checkpoint/soup@v1")
    assert training.of_checkpoint(str(tmp_path), commit_checkpoint(tmp_path, "run/souped@v1", 7)) is None
