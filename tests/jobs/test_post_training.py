"""Instruction and preference data decontaminated by the recipe and the code of any other documents."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dataplane import contamination_conversations as conversations
from evalplane import export_prompts
from jobs import train
from jobs.cli import app
from triplane import artifact, vocabulary
from triplane.errors import Refused

RECIPE = Path(train.__file__).parent / "recipes" / "decontamination" / "post_training.yaml"
QUESTIONS = [
    "How many old stone bridges cross the river between the northern island and the harbour of the town?",
    "Which of the seven sailors counted every lighthouse that they had passed since the first morning at sea?",
]
OTHER = (
    "Please write a short poem about the weather of late autumn and nothing else, with a rhyme in every second line."
)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


INSTRUCTIONS: list[Any] = [
    {"id": "clean", "messages": [message("user", OTHER), message("assistant", "Grey skies.")]},
    {"id": "asked", "messages": [message("system", "Be kind."), message("user", QUESTIONS[0].upper()), message("assistant", "Nine.")]},
    {"id": "parts", "messages": [message("user", [{"type": "text", "text": QUESTIONS[1]}]), message("assistant", None)]},
]  # fmt: skip
PREFERENCES: list[Any] = [
    {"chosen": [message("user", OTHER), message("assistant", "A")], "rejected": [message("user", OTHER), message("assistant", "B")]},
    {"prompt": QUESTIONS[0], "chosen": "Nine, I think.", "rejected": "Who knows?"},
    {"prompt": OTHER, "chosen": "Grey skies.", "rejected": f"You should rather ask: {QUESTIONS[1]}"},
]  # fmt: skip


def done(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in rows))
    return path


def test_what_is_said_in_a_row() -> None:
    assert conversations.text(PREFERENCES[0]) == f"{OTHER}\n\nA\n\nB"
    assert conversations.text(PREFERENCES[1]) == f"{QUESTIONS[0]}\n\nNine, I think.\n\nWho knows?"
    assert conversations.text(INSTRUCTIONS[2]) == QUESTIONS[1]
    wrongs: list[Any] = [
        {},
        {"text": "x"},
        {"messages": 7},
        {"messages": ["x"]},
        {"messages": [{"content": 3}]},
        {"messages": []},
    ]
    assert [conversations.text(wrong) for wrong in wrongs] == [None] * 6


def test_a_line_that_is_no_conversation_stays_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "mixed.jsonl", [INSTRUCTIONS[0], "not json\n", '["x"]\n', PREFERENCES[1], "[" * 10_000 + "\n"]
    )
    found = conversations.convert(str(path), tmp_path / "out")
    assert found == {"mixed.jsonl": {"rows": 5, "conversations": 2}}
    monkeypatch.setattr(conversations, "MAX_DOCUMENT_BYTES", 10)
    with pytest.raises(Refused, match="more than 10 bytes"):
        conversations.convert(str(write(tmp_path / "long.jsonl", ["x" * 50])), tmp_path / "out")


@pytest.fixture
def built(tmp_path: Path) -> dict[str, Any]:
    """The recipe's build over both kinds of data, by the commands of its first lines."""
    root = tmp_path / "root"
    items = write(tmp_path / "quiz_test.jsonl", [{"ask": question} for question in QUESTIONS])
    exported = export_prompts.export(
        str(root), "eval-items", [], [export_prompts.File(str(items), "quiz", "test", {"question": "ask"})], []
    )
    index = done("data", "decontamination", "index", exported.reference, "--root", root)
    (tmp_path / "tokenizer.json").write_bytes(vocabulary.train([OTHER, *QUESTIONS], 300))
    given = [f"tokenizer={tmp_path}/tokenizer.json"]
    for number, (name, rows) in enumerate((("instructions", INSTRUCTIONS), ("preferences", PREFERENCES))):
        done("data", "decontamination", "documents", write(tmp_path / f"{name}.jsonl", rows), "--out", tmp_path / name)
        params = {"index": index["index"], "sha256": index["sha256"]}
        given += [f"sources.{number}.documents={tmp_path}/{name}", f"sources.{number}.licence=CC0-1.0"]
        given += [f"sources.{number}.taggers.3.params.{key}={value}" for key, value in params.items()]
    return {"root": str(root), **done("data", "build", RECIPE, "--root", root, *given)}


def test_rows_that_hold_an_evaluation_item_are_dropped(built: dict[str, Any]) -> None:
    url = artifact.artifact_url(built["root"], built["selection"])
    manifest = artifact.load(built["root"], built["selection"])
    reasons = {
        record.counts["source"]: pq.read_table(pa.BufferReader(artifact.read(url, record.files[0])))[
            "reason"
        ].to_pylist()
        for record in manifest.records
    }
    assert reasons == {name: [None, "contaminated", "contaminated"] for name in ("instructions", "preferences")}


def test_the_recipe_as_it_stands_asks_for_what_is_unset() -> None:
    result = CliRunner().invoke(app, ["data", "build", str(RECIPE), "--root", "nowhere"])
    assert result.exit_code == 2 and "sha256" in result.stderr
