"""Whole evaluations: what is committed, what a second run does, and that nothing failed becomes a score."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from evalplane import models, report, run, shards
from evalplane.backends import native
from evalplane.task import Item, Loglikelihood, Request, Suite, load_suite, load_task
from triplane import artifact
from triplane.errors import Corrupt, NotFound, Refused, TriplaneError
from triplane.lm.model import Olmo2
from triplane.lm.weights import save_tensors
from triplane.tokenizer import Tokenizer


@dataclass(frozen=True)
class Oracle:
    """A backend that knows answers: a continuation in `likes` is certain, others cost their length; a token is a character."""

    likes: frozenset[str] = frozenset()
    max_length: int = 10_000

    def lengths(self, requests: Sequence[Request]) -> list[int]:
        return [len(r.context) + len(r.continuation) + r.max_new_tokens for r in requests]

    def loglikelihood(self, requests: Sequence[Request]) -> list[Loglikelihood | None]:
        return [
            Loglikelihood(
                -0.0 if r.continuation in self.likes else -float(len(r.continuation)), False, len(r.continuation)
            )
            if n <= self.max_length or not r.context
            else None
            for r, n in zip(requests, self.lengths(requests), strict=True)
        ]

    def generate(self, requests: Sequence[Request]) -> list[str | None]:
        return ["2" if n <= self.max_length else None for n in self.lengths(requests)]


COLOURS = [
    Item("sky", {"question": "What colour is the sky?"}, ("green", "blue"), 1),
    Item("sun", {"question": "What colour is the sun?"}, ("yellow", "violet"), 0),
]
SHOTS = [Item("grass", {"question": "What colour is the grass in summer?"}, ("green", "red"), 0)]


@pytest.fixture
def demo(documents: list[str], arithmetic_items: str) -> Suite:
    paths = f"held_out_bits_per_byte.data.path=[{', '.join(documents)}]"
    return load_suite("demo", [f"arithmetic.data.path=[{arithmetic_items}]", paths])


def test_the_better_format_counts_and_both_are_kept() -> None:
    score, tables = run.evaluate_task(load_task("arc_easy"), COLOURS, SHOTS, Oracle(frozenset({" blue", " yellow"})))
    assert (score["format"], score["value"], score["metric"]) == ("cloze", 1.0, "acc_per_char")
    assert score["formats"]["mc"]["value"] == 0.5  # both letters alike: the first wins, right once
    assert score["formats"]["cloze"]["metrics"]["acc_raw"]["value"] == 1.0
    assert {name: table.num_rows for name, table in tables.items()} == {"mc": 2, "cloze": 2}
    assert (score["num_shots_used"], score["reason"], score["num_overlong"]) == (1, None, 0)


def test_shots_are_left_out_where_they_exceed_the_context_and_it_says_so() -> None:
    score, _ = run.evaluate_task(load_task("arc_easy"), COLOURS, SHOTS, Oracle(max_length=80))
    assert score["formats"]["mc"]["num_shots_used"] == 0
    assert "with 1 shots is" in score["formats"]["mc"]["reason"] and "context 80" in score["formats"]["mc"]["reason"]
    assert score["formats"]["mc"]["num_items"] == 2


def test_items_longer_than_the_context_are_counted_and_not_cut() -> None:
    long = Item("long", {"question": "word " * 30}, ("green", "blue"), 1)
    score, tables = run.evaluate_task(load_task("arc_easy"), [*COLOURS, long], [], Oracle(max_length=80))
    assert (score["formats"]["cloze"]["num_items"], score["formats"]["cloze"]["num_overlong"]) == (2, 1)
    assert tables["cloze"]["overlong"].to_pylist() == [False, False, True]
    with pytest.raises(Refused, match="none of 1 items fits"):
        run.evaluate_task(load_task("arc_easy"), [long], [], Oracle(max_length=80))


def test_a_backend_that_loses_requests_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oracle, "loglikelihood", lambda self, requests: [])
    with pytest.raises(TriplaneError, match="answered 0 of 4 requests"):
        run.evaluate_task(load_task("arc_easy"), COLOURS, [], Oracle())


def test_an_evaluation_of_a_real_model(
    model_folder: Path, demo: Suite, documents: list[str], tmp_path: Path, tokenizer: Tokenizer, model: Olmo2
) -> None:
    made = run.evaluate(str(model_folder), demo, str(tmp_path / "root"))
    assert made.reference.startswith("evaluation/demo-tiny@")
    assert artifact.verify(made.url) == []

    rows = made.items("held_out_bits_per_byte")
    assert rows["source"].to_pylist() == ["web", "web", "code", "code"]
    assert rows["bytes"].to_numpy().dtype == np.int64 and rows["bits"].to_numpy().dtype == np.float64
    text = "def add(a, b):\n    return a + b\n\nprint(add(7, 5))\n"
    ids = [tokenizer.eos_id, *tokenizer.encode([text])[0].tolist()]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    bits = -float(logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].double().sum()) / math.log(2)
    assert rows["bits"][2].as_py() == pytest.approx(bits, rel=1e-5)
    assert rows["bytes"].to_pylist()[2:] == [len(text), 0]
    score = made.scores["held_out_bits_per_byte"]
    assert score["by_source"]["code"]["value"] == pytest.approx(bits / len(text), rel=1e-5)
    assert score["value"] == pytest.approx(sum(rows["bits"].to_pylist()) / sum(rows["bytes"].to_pylist()))

    answers = made.items("arithmetic")
    assert answers["id"].to_pylist() == ["a0", "a1", "a2"]
    assert answers["correct"].to_numpy(zero_copy_only=False).dtype == np.bool_
    assert all(isinstance(answer, str) and "\n" not in answer for answer in answers["answer"].to_pylist())
    assert made.scores["arithmetic"]["value"] == np.mean(answers["correct"].to_pylist())


def test_a_committed_evaluation_is_read_back_without_a_model(
    model_folder: Path, demo: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "root")
    first = run.evaluate(str(model_folder), demo, root)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*") if path.is_file()}
    monkeypatch.setattr(native, "load", lambda *_: pytest.fail("loaded a model for a committed evaluation"))
    again = run.evaluate(str(model_folder), demo, root)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*") if path.is_file()} == before


def test_another_limit_or_other_data_is_another_evaluation(
    model_folder: Path, demo: Suite, arithmetic_items: str, tmp_path: Path
) -> None:
    def name(limit: int | None = None) -> str:
        return run.plan(str(model_folder), demo, str(tmp_path / "root"), limit=limit).draft.reference

    whole, limited = name(), name(1)
    with Path(arithmetic_items).open("a") as file:
        file.write(json.dumps({"id": "a9", "question": "9+9=\n", "answer": "18"}) + "\n")
    assert len({whole, limited, name()}) == 3


def test_where_data_lies_is_not_what_it_is(model_folder: Path, arithmetic_items: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    shutil.copy(arithmetic_items, elsewhere)
    references = {
        run.plan(str(model_folder), [load_task("arithmetic", [f"data.path=[{path}]"])], str(tmp_path)).draft.reference
        for path in (arithmetic_items, elsewhere)
    }
    assert len(references) == 1


def test_an_interrupted_evaluation_goes_on_with_the_shards_left(
    model_folder: Path, demo: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, asked = str(tmp_path / "root"), []
    real = shards.Asker.answer

    def counted(self: shards.Asker, shard: shards.Shard) -> shards.Answers:
        asked.append(shard.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, shard)

    monkeypatch.setattr(shards.Asker, "answer", counted)
    monkeypatch.setattr(shards.of_task, "__defaults__", (1,))  # an item a shard
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(str(model_folder), demo, root)
    assert artifact.references(root, "evaluation") == []
    resumed = run.evaluate(str(model_folder), demo, root)
    first, second = "arithmetic-generate-0000", "held_out_bits_per_byte-bits_per_byte-0000"
    names = [f"{first}{i}" for i in range(3)] + [f"{second}{i}" for i in range(4)]
    assert asked == [*names[:3], *names[2:]]
    fresh = run.evaluate(str(model_folder), demo, str(tmp_path / "other"))
    assert resumed.manifest == fresh.manifest


def test_weights_that_are_not_numbers_commit_nothing(model_folder: Path, demo: Suite, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"][3] = math.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    for task in demo.tasks:
        with pytest.raises(TriplaneError, match="not numbers"):
            run.evaluate(str(broken), [task], str(tmp_path / "root"))
    assert artifact.references(str(tmp_path / "root"), "evaluation") == []


def commit_checkpoint(root: str, model: Olmo2, tokens: int, tokenizer_sha256: str, reference: str | None) -> str:
    url = f"{root}/run/small@v1/checkpoints/tokens-{tokens:015d}"
    name = f"small-tokens-{tokens:015d}"
    draft = artifact.begin(
        root, "checkpoint", name, inputs={}, recipe={"n": tokens}, stage_versions={}, version="v1", url=url
    )
    draft.record("model", save_tensors(draft, "model", model.state_dict()), {})
    tokenizer = {"sha256": tokenizer_sha256, "reference": reference}
    draft.commit({"model_config": model.config.to_dict(), "tokenizer": tokenizer, "tokens_seen": tokens, "step": 1})
    return url


def commit_tokenizer(root: str, tokenizer: Tokenizer) -> str:
    draft = artifact.begin(root, "tokenizer", "small", inputs={}, recipe={}, stage_versions={"t": 1})
    draft.record("tokenizer", [draft.put_bytes(tokenizer.json_bytes, "tokenizer", ".json")], {})
    return draft.commit({}).reference


def test_a_run_means_its_last_checkpoint_with_its_recorded_tokenizer(
    model: Olmo2, tokenizer: Tokenizer, demo: Suite, model_folder: Path, tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    reference = commit_tokenizer(root, tokenizer)
    first = commit_checkpoint(root, model, 1000, tokenizer.sha256, reference)
    last = commit_checkpoint(root, model, 20000, tokenizer.sha256, reference)
    Path(root, "run/small@v1/checkpoints/tokens-000000000030000").mkdir()  # crashed before its manifest
    assert run.plan("run/small@v1", demo, root).source.url == last
    assert run.plan(f"{root}/run/small@v1", demo, root).source.url == last
    assert run.plan(first, demo, root).source.name == "small-tokens-000000000001000"
    made = run.evaluate("run/small@v1", demo, root)
    same = run.evaluate(str(model_folder), demo, root)  # the same weights, exported
    assert made.items("held_out_bits_per_byte").equals(same.items("held_out_bits_per_byte"))
    table = report.markdown(report.load_scores(root))
    assert "small-tokens-000000000020000 | tiny" in table


def test_a_model_that_changed_after_it_was_named_has_no_score(
    model_folder: Path, demo: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = tmp_path / "changing"
    shutil.copytree(model_folder, changing)
    real = native.load

    def overwritten(source: models.Model, *rest: Any) -> native.Native:
        tensors = load_file(changing / "model.safetensors")
        save_file({**tensors, "lm_head.weight": -tensors["lm_head.weight"]}, changing / "model.safetensors")
        return real(source, *rest)

    monkeypatch.setattr(native, "load", overwritten)
    with pytest.raises(Corrupt, match="changed while it was evaluated"):
        run.evaluate(str(changing), demo, str(tmp_path / "root"))


def test_naming_a_model_loads_no_torch() -> None:
    """A committed evaluation is read back in a fraction of the time that torch takes to load."""
    program = "import sys, evalplane.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_checkpoint_with_another_tokenizer_is_refused(
    model: Olmo2, tokenizer: Tokenizer, demo: Suite, tmp_path: Path
) -> None:
    root = str(tmp_path / "root")
    url = commit_checkpoint(root, model, 1000, "0" * 64, commit_tokenizer(root, tokenizer))
    with pytest.raises(Refused, match="was trained with tokenizer 000000000000"):
        run.evaluate(url, demo, root)


def test_no_model_and_no_items_say_what_is_there(demo: Suite, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"neither manifest\.json nor config\.json, nor committed checkpoints"):
        run.plan(str(tmp_path / "nothing"), demo, str(tmp_path))
    made = run.evaluate(str(model_folder), [demo.tasks[0]], str(tmp_path / "root"))
    with pytest.raises(NotFound, match="holds no items of hellaswag"):
        made.items("hellaswag")


def test_items_that_were_changed_are_not_read(model_folder: Path, demo: Suite, tmp_path: Path) -> None:
    made = run.evaluate(str(model_folder), demo, str(tmp_path))
    (path,) = Path(made.url).glob("arithmetic-generate-00000-*.parquet")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Corrupt, match=r"arithmetic-.*\.parquet holds \d+ bytes with sha256"):
        made.items("arithmetic")
    assert made.items("held_out_bits_per_byte").num_rows == 4


def test_an_evaluation_on_an_object_store(s3_root: str, model_folder: Path, demo: Suite) -> None:
    made = run.evaluate(str(model_folder), demo, s3_root, limit=1)
    assert made.items("arithmetic").num_rows == 1
    assert run.evaluate(str(model_folder), demo, s3_root, limit=1) == made


def test_training_gets_the_numbers_of_an_evaluation_without_one(
    model_folder: Path, demo: Suite, tmp_path: Path, model: Olmo2, tokenizer: Tokenizer
) -> None:
    """Asked of the model in this process, shard by shard too: same code, same numbers."""
    made = run.evaluate(str(model_folder), demo, str(tmp_path / "root"))
    planned = run.plan(str(model_folder), demo, str(tmp_path / "root"))
    for task in demo.tasks:
        ready = planned.prepared[task.name]
        score, tables = run.evaluate_task(task, ready.items, ready.shots, native.paired(model, tokenizer))
        assert json.loads(json.dumps(score)) == made.scores[task.name]
        assert tables[score["format"]].equals(made.items(task.name))


def test_requests_are_kept_with_what_came_back(model_folder: Path, demo: Suite, tmp_path: Path) -> None:
    made = run.evaluate(str(model_folder), demo, str(tmp_path / "root"))
    (path,) = Path(made.url).glob("arithmetic-generate-00000.requests-*.parquet")
    asked = pq.read_table(path)
    assert asked["id"].to_pylist() == ["a0", "a1", "a2"]
    assert asked["answer"].to_pylist() == made.items("arithmetic")["answer"].to_pylist()
    assert all(context.endswith("1+1=\n") for context in asked["context"].to_pylist()[1:2])
    assert asked["loglikelihood"].null_count == 3
    (path,) = Path(made.url).glob("held_out_bits_per_byte-bits_per_byte-00000.requests-*.parquet")
    documents = pq.read_table(path)
    bits = [-value / math.log(2) for value in documents["loglikelihood"].to_pylist()]
    assert bits == pytest.approx(made.items("held_out_bits_per_byte")["bits"].to_pylist())
    assert made.manifest.metadata["counters"] == {
        "items": 7,
        "requests": 7,
        "overlong_requests": 0,
        "failed_requests": 0,
    }
    known = made.manifest.metadata["decontamination"]
    assert {task: said["status"] for task, said in known.items()} == dict.fromkeys(made.scores, "unknown")


def test_shards_of_another_size_give_the_same_scores(
    model_folder: Path, demo: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.evaluate(str(model_folder), demo, str(tmp_path / "whole"))
    monkeypatch.setattr(shards.of_task, "__defaults__", (2,))
    parts = run.evaluate(str(model_folder), demo, str(tmp_path / "parts"))
    assert len(parts.manifest.records) > len(whole.manifest.records)
    assert parts.items("arithmetic").equals(whole.items("arithmetic"))
    for name in ("value", "num_items"):
        found, expected = (one.scores["held_out_bits_per_byte"].get(name) for one in (parts, whole))
        assert found == pytest.approx(expected, rel=1e-6)
