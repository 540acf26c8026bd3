"""Fault row 29 over committed artifacts: lineage of a checkpoint, status by its sources, what is refused and what a flag lets through."""

import json
from pathlib import Path
from typing import Any

import pytest

from evalplane import decontamination, lineage, report, run
from evalplane.decontamination import OnContamination
from evalplane.task import Task, load_task
from triplane import artifact, contamination_status
from triplane.contamination_status import Status, pair
from triplane.errors import Corrupt, Refused
from triplane.lm.model import Olmo2
from triplane.lm.weights import save_tensors
from triplane.tokenizer import Tokenizer


def commit(root: str, kind: str, name: str, parents: list[str], metadata: dict[str, Any] | None = None) -> str:
    draft = artifact.begin(root, kind, name, inputs={}, recipe={}, stage_versions={}, parents=parents, version="v")
    draft.commit(metadata or {})
    return draft.reference


def commit_build(root: str, source: str) -> str:
    """The tokens of a source that was tagged and selected."""
    attributes = commit(root, "attributes", source, [])
    selection = commit(root, "selection", f"build-{source}", [attributes])
    return commit(root, "tokens", source, [], {"selection": selection, "source": source})


def pair_of(source: str) -> str:
    return pair(f"selection/build-{source}@v", f"attributes/{source}@v")


def commit_checkpoint(root: str, model: Olmo2, tokenizer: Tokenizer, run_reference: str) -> str:
    url = f"{root}/{run_reference}/checkpoints/tokens-000000000001000"
    draft = artifact.begin(
        root, "checkpoint", "c", inputs={}, recipe={}, stage_versions={}, parents=[run_reference], version="v", url=url
    )
    draft.record("model", save_tensors(draft, "model", model.state_dict()), {})
    held = artifact.begin(root, "tokenizer", "t", inputs={}, recipe={}, stage_versions={}, version="v")
    held.record("tokenizer", [held.put_bytes(tokenizer.json_bytes, "tokenizer", ".json")], {})
    held.commit({})
    about = {"sha256": tokenizer.sha256, "reference": "tokenizer/t@v"}
    draft.commit({"model_config": model.config.to_dict(), "tokenizer": about, "tokens_seen": 1000, "step": 1})
    return url


def commit_report(root: str, kept: dict[str, list[str]], name: str = "strict", items: str = "a0 a1 a2") -> str:
    """`kept`: by source, the items of `arithmetic` in what was kept."""
    draft = artifact.begin(
        root,
        contamination_status.KIND,
        contamination_status.NAME,
        inputs={},
        recipe={"preset": name},
        stage_versions={},
    )
    body = {
        "items": items.split(),
        "contaminated": sorted({item for held in kept.values() for item in held}),
        "kept": {pair_of(source): held for source, held in kept.items()},
    }
    draft.record("tasks", [draft.put_bytes(json.dumps({"arithmetic": body}).encode(), "tasks", ".json")], {})
    return draft.commit({}).reference


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture
def checkpoint(root: str, model: Olmo2, tokenizer: Tokenizer) -> str:
    """Trained on sources `web` and `code` of a build."""
    mix = commit(root, "mix", "m", ["tokenizer/t@v", commit_build(root, "web"), commit_build(root, "code")])
    return commit_checkpoint(root, model, tokenizer, commit(root, "run", "r", [mix]))


@pytest.fixture
def task(arithmetic_items: str) -> Task:
    return load_task("arithmetic", [f"data.path=[{arithmetic_items}]"])


def test_the_sources_of_a_checkpoint(root: str, checkpoint: str, tmp_path: Path) -> None:
    assert lineage.sources(root, checkpoint) == [pair_of("code"), pair_of("web")]
    assert lineage.sources(root, str(tmp_path)) == []


def test_sources_of_earlier_runs_soups_and_unfinished_runs_count(
    root: str, checkpoint: str, model: Olmo2, tokenizer: Tokenizer
) -> None:
    mix = commit(root, "mix", "n", [commit_build(root, "math")])
    begun = Path(root, "run", "s@v", "started.json")
    begun.parent.mkdir(parents=True)
    inputs = {"mix": mix, "mix_identity": "x", "parent": "checkpoint/r@v.tokens-000000000001000"}
    begun.write_text(json.dumps({"inputs": inputs}))
    later = commit_checkpoint(root, model, tokenizer, "run/s@v")
    everything = [pair_of("code"), pair_of("math"), pair_of("web")]
    assert lineage.sources(root, later) == everything
    soup = commit(root, "checkpoint", "soup", ["run/r@v", "run/s@v/checkpoints/tokens-000000000001000"])
    assert lineage.sources(root, f"{root}/{soup}") == everything


def test_what_is_gone_or_no_build_is_named(root: str, checkpoint: str, model: Olmo2, tokenizer: Tokenizer) -> None:
    plain = commit(root, "tokens", "plain", [])
    mix = commit(root, "mix", "o", [plain, "tokens/gone@v"])
    made = commit_checkpoint(root, model, tokenizer, commit(root, "run", "t", [mix, "run/lost@v"]))
    assert lineage.sources(root, made) == ["run/lost@v", "tokens/gone@v", "tokens/plain@v"]


def test_what_does_not_say_what_it_was_made_of_is_named(root: str, model: Olmo2, tokenizer: Tokenizer) -> None:
    """Released weights, and a mix of files that somebody listed: a run on them is clean of nothing, whatever its own sources are."""
    released = commit(root, "checkpoint", "released", [])
    listed = commit(root, "mix", "listed", [])
    mix = commit(root, "mix", "m", ["tokenizer/t@v", commit_build(root, "web")])
    tuned = commit(root, "run", "tuned", [mix, released])
    made = commit_checkpoint(root, model, tokenizer, tuned)
    assert lineage.sources(root, made) == [released, pair_of("web")]
    annealed = commit(root, "run", "annealed", [listed, "checkpoint/tuned@v.tokens-000000000001000", "model/other@v"])
    soup = commit(root, "checkpoint", "soup", [annealed, tuned])
    assert lineage.sources(root, f"{root}/{soup}") == [released, listed, "model/other@v", pair_of("web")]
    assert lineage.sources(root, f"{root}/{released}") == []
    commit_report(root, {"web": []})
    known = decontamination.statuses(root, made, ["arithmetic"], lambda _: ["a0"])
    assert known["arithmetic"].status == "unknown"


def evaluate(url: str, task: Task, root: str, policy: OnContamination = "refuse") -> dict[str, Any]:
    made = run.evaluate(url, [task], root, on_contamination=policy)
    found: dict[str, Any] = made.manifest.metadata["decontamination"]["arithmetic"]
    return found


def test_items_that_were_trained_on_are_refused_unless_they_may_be(root: str, checkpoint: str, task: Task) -> None:
    reference = commit_report(root, {"web": ["a1"], "code": []})
    for policy in ("refuse", "require_clean"):
        with pytest.raises(
            Refused, match=r"in what r-tokens-0+1000 was trained on: 1 of arithmetic .*--allow-contaminated"
        ):
            evaluate(checkpoint, task, root, policy)  # type: ignore[arg-type]
    assert artifact.references(root, "evaluation") == []
    said = {"status": "contaminated", "items": ["a1"], "report": reference, "preset": "strict", "unsearched": 0}
    assert evaluate(checkpoint, task, root, "allow") == said
    with pytest.raises(Refused, match="was trained on"):  # one that stands, too
        evaluate(checkpoint, task, root)
    assert "contaminated: arithmetic (1 items)" in report.markdown(report.load_scores(root))


def test_a_score_says_what_is_known_now(root: str, checkpoint: str, task: Task) -> None:
    """Scored before anybody looked; what is found later is said of it wherever it is read, and a report that is gone takes nothing back."""
    assert evaluate(checkpoint, task, root)["status"] == "unknown"
    commit_report(root, {"web": [], "code": []})
    assert evaluate(checkpoint, task, root, "require_clean")["status"] == "clean"
    (said,) = report.load_scores(root)
    assert said["decontamination"]["arithmetic"]["status"] == "clean"
    assert "contaminated" not in report.markdown([said])
    newer = commit_report(root, {"web": ["a1"], "code": []}, "simple")
    made = evaluate(checkpoint, task, root, "allow")
    assert (made["status"], made["items"], made["report"]) == ("contaminated", ["a1"], newer)
    assert "contaminated: arithmetic (1 items)" in report.markdown(report.load_scores(root))
    assert len(artifact.references(root, "evaluation")) == 1
    assert decontamination.updated({"decontamination": {"t": said}}, {"t": Status("unknown")}) == {
        "decontamination": {"t": said}
    }


def test_a_clean_model_passes_every_check(root: str, checkpoint: str, task: Task) -> None:
    reference = commit_report(root, {"web": [], "code": [], "elsewhere": ["a0"]})
    said = {"status": "clean", "items": [], "report": reference, "preset": "strict", "unsearched": 0}
    assert evaluate(checkpoint, task, root, "require_clean") == said
    planned = run.plan(checkpoint, [task], root).describe()
    assert planned["tasks"][0]["decontamination"] == "clean"


@pytest.mark.parametrize(
    "reports",
    [[], [{"web": []}], [{"elsewhere": ["a0"]}], [{"web": [], "code": [], "items": "a0"}]],
    ids=["none", "one_source", "other_sources", "fewer_items"],
)
def test_what_nobody_looked_at_is_unknown(
    reports: list[dict[str, Any]], root: str, checkpoint: str, task: Task
) -> None:
    for one in reports:
        commit_report(root, one, items=one.pop("items", "a0 a1 a2"))
    with pytest.raises(Refused, match="nobody looked whether the items of arithmetic"):
        evaluate(checkpoint, task, root, "require_clean")
    assert evaluate(checkpoint, task, root)["status"] == "unknown"


def test_a_folder_and_a_report_about_something_else_say_nothing(
    root: str, checkpoint: str, model_folder: Path, task: Task
) -> None:
    commit_report(root, {"web": ["a0"], "code": []})
    assert evaluate(str(model_folder), task, root)["status"] == "unknown"


def test_each_source_is_judged_by_the_newest_report_that_looked_at_it() -> None:
    def of(name: str, kept: dict[str, list[str]]) -> contamination_status.Report:
        return contamination_status.Report(
            name, "strict", {"t": {"items": ["a", "b"], "contaminated": [], "unsearched": [], "kept": kept}}
        )

    newest, older = of("new", {"x": []}), of("old", {"x": ["a"], "y": ["b"]})
    judge = contamination_status.of_training
    assert judge([newest, older], "t", ["a"], ["x", "y"]) == Status("clean", (), "new", "strict")
    assert judge([newest, older], "t", ["a", "b"], ["x", "y"]) == Status("contaminated", ("b",), "new", "strict")
    assert judge([newest], "t", ["a"], ["x", "y"]).status == "unknown"
    assert judge([newest, older], "t", ["a"], []).status == "unknown"


def test_items_too_short_to_be_found_are_counted_and_alone_are_never_clean() -> None:
    task = {"items": ["a", "b"], "contaminated": [], "unsearched": ["b"], "kept": {"x": []}}
    known = [contamination_status.Report("r", "strict", {"t": task})]
    judge = contamination_status.of_training
    assert judge(known, "t", ["a", "b"], ["x"]) == Status("clean", (), "r", "strict", 1)
    assert judge(known, "t", ["b"], ["x"]) == Status("unknown", (), "r", "strict", 1)
    line = report.contamination(
        {
            "model": {"name": "m"},
            "decontamination": {"t": judge(known, "t", ["a", "b"], ["x"]).to_json()},
        }
    )
    assert line.endswith("m: clean: t (1 items too short to be found)")


def test_a_damaged_report_is_said(root: str, checkpoint: str, task: Task) -> None:
    draft = artifact.begin(
        root, contamination_status.KIND, contamination_status.NAME, inputs={}, recipe={}, stage_versions={}
    )
    draft.record("tasks", [draft.put_bytes(b'{"arithmetic": []}', "tasks", ".json")], {})
    draft.commit({})
    with pytest.raises(Corrupt, match="is no contamination report"):
        evaluate(checkpoint, task, root)


def test_the_sentence_names_few_of_many() -> None:
    many = {f"t{i}": Status("contaminated", ("a",), "r") for i in range(5)}
    with pytest.raises(Refused, match="1 of t0, 1 of t1, 1 of t2 and of 2 more tasks"):
        decontamination.check(many, "m", "refuse")
    decontamination.check(many, "m", "allow")
    unknown = {f"t{i}": Status("unknown") for i in range(5)}
    decontamination.check(unknown, "m", "refuse")
    with pytest.raises(Refused, match="t0, t1, t2 and others"):
        decontamination.check(unknown, "m", "require_clean")
