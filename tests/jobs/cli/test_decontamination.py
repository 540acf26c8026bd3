"""`triplane eval export-prompts` and `triplane data decontamination`: from a file of questions to an index; wrong use says so."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from jobs.cli import app


def triplane(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_from_a_file_of_questions_to_an_index(tmp_path: Path) -> None:
    questions, root = tmp_path / "quiz_test.csv", tmp_path / "root"
    questions.write_text("id,ask\n1,How many old stone bridges cross the river?\n2,Why?\n")
    export = ("eval", "export-prompts", "--root", root, "--json", "--file")
    made = triplane(*export, f"quiz,{questions},question=ask,item=id")
    assert made.exit_code == 0 and json.loads(made.stdout)["sets"] == {"quiz": 2}
    found = json.loads(
        triplane("data", "decontamination", "index", "eval_items/eval-items", "--root", root, "--json").stdout
    )
    assert Path(found["index"]).stat().st_size == found["bytes"]
    assert found["sets"] == [{"task": "quiz", "split": "test", "items": 2, "indexed": 1}]
    for file, code, sentence in (
        (f"quiz,{questions}", 2, "write for instance ifeval"),
        (f"quiz,{questions},question=ask,mood=x", 2, "write for instance ifeval"),
        (f"quiz,{questions},question=text", 1, "has the field text for question"),
    ):
        wrong = triplane(*export, file)
        assert wrong.exit_code == code and sentence in wrong.stderr
    nothing = triplane("data", "decontamination", "report", "--root", root, "--items", "eval_items/eval-items")
    assert nothing.exit_code == 1 and "was tagged with contamination" in nothing.stderr
