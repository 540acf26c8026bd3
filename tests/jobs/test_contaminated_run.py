"""Fault row 29 from end to end: planted items -> build -> run -> evaluation, by the commands that a user gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from evalplane import export_prompts
from evalplane.task import load_task
from jobs.cli import app
from tests.training_fixtures import RECIPE, merged
from trainplane.recipe import RunRecipe
from triplane import vocabulary
from triplane.recipe import resolved
from triplane.tokenizer import Tokenizer

QUESTIONS = [
    "How many old stone bridges cross the river between the northern island and the harbour of the town?",
    "Which of the seven sailors counted every lighthouse that they had passed since the first morning at sea?",
]
FILLER = "Page {n}: the weather of late autumn was described at length by travellers who had nothing else to do there."
SEQUENCE = 16
PLAIN: list[Any] = ["lengths", "text_hash", "ngram_repetition"]


def build_recipe(folder: Path, index: dict[str, Any]) -> str:
    params = {"index": index["index"], "sha256": index["sha256"], "presets": ["strict"]}
    tagged = [*PLAIN, {"name": "contamination", "params": params}]
    common = {"documents": f"{folder}/texts", "format": "dolma", "licence": "CC0-1.0", "exact_dedup": False}
    chosen = {"kept": (tagged, []), "dropped": (tagged, ["contamination"]), "unsearched": (PLAIN, [])}
    shares: dict[str, dict[str, float]] = {name: {name: 1.0} for name in ("kept", "dropped")}
    shares["unsearched"] = {"dropped": 0.5, "unsearched": 0.5}
    recipe = {
        "name": "planted", "seed": 5, "tokenizer": f"{folder}/tokenizer.json", "sequence_length_tokens": SEQUENCE, "shard_tokens": "1M",
        "held_out_fraction": 0.0,
        "sources": [{"name": name, **common, "taggers": taggers, "rules": rules} for name, (taggers, rules) in chosen.items()],
        "mixes": [{"name": name, "tokens": 1600, "shares": of} for name, of in shares.items()],
    }  # fmt: skip
    return yaml.safe_dump(recipe)


def triplane(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def done(*arguments: Any) -> dict[str, Any]:
    result = triplane(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root` with three runs of one step: trained on a source that kept the planted items, dropped them, or (half) was never searched."""
    folder = tmp_path_factory.mktemp("planted")
    texts = [FILLER.format(n=n) for n in range(60)]
    texts[7] += f" {QUESTIONS[0]}"
    (folder / "texts").mkdir()
    lines = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
    (folder / "texts" / "part-00000.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "tokenizer.json").write_bytes(vocabulary.train([*texts, *QUESTIONS], 320))
    items = [{"id": f"q{n}", "question": f"{one}\n", "answer": "nine"} for n, one in enumerate(QUESTIONS)]
    (folder / "items.jsonl").write_text("".join(json.dumps(one) + "\n" for one in items))
    root = str(folder / "root")
    task = load_task("arithmetic", [f"data.path=[{folder}/items.jsonl]"])
    exported = export_prompts.export(root, "eval-items", [task], [], []).reference
    index = done("data", "decontamination", "index", exported, "--root", root)
    (folder / "build.yaml").write_text(build_recipe(folder, index))
    done("data", "build", folder / "build.yaml", "--root", root)
    tokenizer = Tokenizer.load(str(folder / "tokenizer.json"))
    for name in ("kept", "dropped", "unsearched"):
        train(folder, name, tokenizer)
    return folder


def train(folder: Path, name: str, tokenizer: Tokenizer) -> None:
    changes = {
        "name": name, "data.mix": f"mix/{name}", "data.sequence_length_tokens": SEQUENCE, "data.global_batch_tokens": 8 * SEQUENCE,
        "stop_tokens": 8 * SEQUENCE, "runtime.checkpoint_every_tokens": 8 * SEQUENCE, "schedule.warmup_tokens": 8 * SEQUENCE,
        "model.vocab_size": tokenizer.vocab_size, "model.eos_token_id": tokenizer.eos_id, "model.pad_token_id": tokenizer.eos_id,
        "model.max_position_embeddings": 256,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(resolved(RunRecipe.model_validate(merged(RECIPE, changes)))))
    done("train", "run", path, "--root", folder / "root")


def evaluation(folder: Path, name: str, *options: str) -> Result:
    data = f"arithmetic.data.path=[{folder}/items.jsonl]"
    return triplane(
        "eval",
        "run",
        "--model",
        f"run/{name}",
        "--suite",
        "arithmetic",
        "--root",
        folder / "root",
        "--set",
        data,
        *options,
    )


def test_planted_items_are_refused_and_clean_ones_pass(folder: Path) -> None:
    assert "unknown: arithmetic" in evaluation(folder, "dropped").output  # nobody made a report yet
    refused = evaluation(folder, "unsearched", "--require-clean")
    assert refused.exit_code == 1 and "nobody looked whether the items of arithmetic" in refused.stderr
    done("data", "decontamination", "report", "--root", folder / "root", "--items", "eval_items/eval-items")

    refused = evaluation(folder, "kept")
    assert refused.exit_code == 1 and refused.stdout == ""
    assert "was trained on: 1 of arithmetic" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    allowed = evaluation(folder, "kept", "--allow-contaminated")
    assert allowed.exit_code == 0 and "contaminated: arithmetic (1 items)" in allowed.stdout
    scored = json.loads(evaluation(folder, "kept", "--allow-contaminated", "--json").stdout)
    assert scored["decontamination"]["arithmetic"]["items"] == ["q0"]
    assert evaluation(folder, "kept").exit_code == 1  # what stands is not shown without the flag either

    clean = evaluation(folder, "dropped", "--require-clean", "--limit", "2")
    assert clean.exit_code == 0 and "clean: arithmetic" in clean.stdout
    half = evaluation(folder, "unsearched")
    assert half.exit_code == 0 and "unknown: arithmetic" in half.stdout
    assert evaluation(folder, "kept", "--allow-contaminated", "--require-clean").exit_code == 2
