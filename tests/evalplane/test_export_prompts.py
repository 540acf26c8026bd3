"""What the evaluation plane hands to decontamination: the items it asks, and files that no task describes; what cannot be read stops it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalplane import export_prompts
from evalplane.export_prompts import File
from evalplane.task import load_task
from triplane import artifact
from triplane.errors import Corrupt, NotFound, UsageError

ROWS = [{"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}, {"question": "Why?", "answer": "#### 0"}]


def gsm8k(folder: Path) -> list[str]:
    (folder / "gsm8k").mkdir()
    (folder / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return [str(folder)]


def rows(root: str, manifest: artifact.Manifest) -> list[dict[str, str]]:
    url = artifact.artifact_url(root, manifest.reference)
    tables = [pq.read_table(pa.BufferReader(artifact.read(url, file))) for file in manifest.files]
    assert all(table.schema == export_prompts.SCHEMA for table in tables)
    found: list[dict[str, str]] = pa.concat_tables(tables).to_pylist()
    return found


def test_items_of_a_task_and_of_a_file(tmp_path: Path) -> None:
    task = load_task("gsm8k", ["data.path=[gsm8k/test.jsonl]", "shots=null"])
    csv = tmp_path / "x_val.csv"
    csv.write_text('\ufeffid,prompt,best\n4,"a, b",c\n')
    files = [File(str(csv), "mine", "", {"question": "prompt", "answer": "best", "item": "id"})]
    root = str(tmp_path / "root")
    made = export_prompts.export(root, "items", [task], files, gsm8k(tmp_path))
    first, second, mine = rows(root, made)
    assert (first["task"], first["split"], first["item"], first["question"]) == ("gsm8k", "test", "0", "How many?")
    assert second["question"] == "Why?" and second["answer"].endswith("So the answer is 0.")
    assert list(mine.values()) == ["mine", "validation", "4", "a, b", "c", ""]
    assert "3 + 4 = 7" in first["answer"] and made.metadata == {"sets": {"gsm8k": 2, "mine": 1}}
    assert export_prompts.export(root, "items", [task], files, [str(tmp_path)]) == made


def test_what_cannot_be_read_stops_the_export(tmp_path: Path) -> None:
    root = str(tmp_path / "root")

    def export(name: str, text: str, **fields: str) -> None:
        (tmp_path / name).write_text(text)
        export_prompts.export(root, "items", [], [File(str(tmp_path / name), "t", "", fields)], [])

    for name, text, message in (
        ("a.jsonl", "", "holds no rows"),
        ("b.jsonl", '{"q": 1', "is not JSON"),
        ("c.json", '{"q": 1}', "no JSON list"),
        ("d.jsonl", '{"other": "x"}', "no row of .* has the field q for question"),
        ("e.jsonl", '{"q": " ? "}', "not one word"),
        ("f.parquet", "PAR1", "no whole Parquet"),
    ):
        with pytest.raises(Corrupt, match=message):
            export(name, text, question="q")
    with pytest.raises(NotFound):
        export_prompts.export(root, "items", [], [File(str(tmp_path / "none"), "t", "", {"question": "q"})], [])
    with pytest.raises(NotFound):
        export_prompts.export(root, "items", [load_task("gsm8k")], [], [str(tmp_path)])
    with pytest.raises(UsageError, match="each once"):
        export_prompts.export(root, "items", [], [], [])
    assert not Path(root).exists()


@pytest.mark.parametrize(
    ("path", "split"), [("a/test/data-0.arrow", "test"), ("x/latest.jsonl", ""), ("train/dev.json", "validation")]
)
def test_the_split_is_what_the_path_says(path: str, split: str) -> None:
    assert export_prompts.split_of(path) == split
