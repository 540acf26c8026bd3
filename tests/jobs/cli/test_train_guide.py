"""Every command of docs/guide/train.md, run in order on a root as `triplane demo` leaves it, but small: shorter runs, less text."""

import json
import re
import shlex
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from jobs import train
from jobs.cli import app
from tests.training_fixtures import merged
from trainplane import plan as plans
from trainplane import run as runs
from trainplane.ledger import Row
from triplane import artifact, mixture, tokens, vocabulary
from triplane.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parents[3]
GUIDE = REPOSITORY / "docs/guide/train.md"
SEQUENCE, VOCAB = 128, 4096
SHORTER = {
    "stop_tokens": 6_144,
    "schedule.warmup_tokens": 2_048,
    "schedule.decay_tokens": 20_480,
    "runtime.checkpoint_every_tokens": 2_048,
}
SHORTER_STAGE_2 = {"stop_tokens": 3_584, "schedule.decay_tokens": 3_584}


def commands() -> list[str]:
    """The lines of the page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.S)
    return [line.split("   #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `demo`, and the recipes of the page with fewer steps."""
    folder = tmp_path / "jobs/recipes/runs"
    folder.mkdir(parents=True)
    first, second = (yaml.safe_load((REPOSITORY / f"jobs/recipes/runs/tiny_stage{n}.yaml").read_text()) for n in (1, 2))
    (folder / "tiny_stage1.yaml").write_text(yaml.safe_dump(merged(first, SHORTER)))
    second["change"] |= SHORTER_STAGE_2
    (folder / "tiny_stage2.yaml").write_text(yaml.safe_dump(second))
    shutil.copy(REPOSITORY / "jobs/recipes/runs/olmo2_32b_stage1.yaml", folder)
    write_demo(str(tmp_path / "demo"), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_demo(root: str, scratch: Path) -> None:
    """A real tokenizer of the demo's size, two mixes of Python's own source and held-out text."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    texts = [path.read_text("utf-8", "ignore") for path in files]
    stored = vocabulary.train(texts, VOCAB)
    draft = artifact.begin(root, "tokenizer", "demo", inputs={}, recipe={}, stage_versions={}, version="v1")
    entry = draft.put_bytes(stored, "tokenizer", ".json")
    draft.record("tokenizer", [entry], {})
    tokenizer = Tokenizer.load(f"{draft.url}/{entry.name}")
    draft.commit({"sha256": tokenizer.sha256, "eos_id": tokenizer.eos_id, "vocab_size": tokenizer.vocab_size})
    for name, part in (("demo-pretrain", texts[:12]), ("demo-anneal", texts[12:20])):
        write_mix(root, scratch, name, tokenizer, part)
    (scratch / "held_out.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "text": t[:600]}) + "\n" for i, t in enumerate(texts[20:24]))
    )


def write_mix(root: str, scratch: Path, name: str, tokenizer: Tokenizer, texts: list[str]) -> None:
    ids, offsets = tokenizer.encode(texts)
    draft = artifact.begin(root, "tokens", name, inputs={}, recipe={}, stage_versions={})
    writer = tokens.ShardWriter(scratch, f"{name}-00000", eos_id=tokenizer.eos_id)
    count = len(texts)
    writer.add(
        ids.astype(np.uint32), offsets, [str(i) for i in range(count)], ["s"] * count, list(range(1, count + 1)), None
    )
    tokens.write_artifact_shard(draft, writer.close(), "00000", {})
    described = {"sha256": tokenizer.sha256, "eos_id": tokenizer.eos_id, "vocab_size": tokenizer.vocab_size}
    shards = mixture.source_shards(root, draft.commit({"tokenizer": described}), "code", SEQUENCE, tokenizer.sha256)
    planned = 12_800 if name == "demo-pretrain" else 6_400
    lock = mixture.plan(name, SEQUENCE, planned, {"code": 1.0}, shards, 1, tokenizer.sha256, VOCAB, tokenizer.eos_id)
    made = artifact.begin(root, "mix", name, inputs={}, recipe={}, stage_versions={})
    entry = made.put_bytes(lock.to_bytes(), "lock", ".json")
    made.record("lock", [entry], {})
    made.commit({"lock": entry.name})


class Killed(BaseException):
    """Stands for Ctrl-C in the middle of the first run of the page."""


def interrupt(place: Path) -> None:
    def kill(row: Row) -> None:
        if row["step"] == 7:
            raise Killed

    plan = plans.plan(train.load(place / "jobs/recipes/runs/tiny_stage1.yaml"), str(place / "demo"))
    with pytest.raises(Killed):
        runs.execute(plan, kill)


def test_every_command_of_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(place)
    said = {}
    for command in commands():
        name, *arguments = shlex.split(command.replace("heldout/prose", "held_out.jsonl"))
        if name == "ls":
            pattern, arrow, target = arguments
            assert arrow == ">"
            (place / target).write_text("".join(f"{path.relative_to(place)}\n" for path in sorted(place.glob(pattern))))
            continue
        assert name == "triplane"
        result = CliRunner().invoke(app, arguments)
        # 4: at this size either the soup or an ingredient may be better, and the page says what each means.
        allowed = (0, 4) if arguments[1] == "anneal" else (0,)
        assert result.exit_code in allowed, f"{command}\n{result.output}"
        said[command] = result.stdout
    assert len(said) >= 15
    assert "unverified_files: 2" in next(text for command, text in said.items() if " list-mix " in command)
    assert "1,024 GPUs (replicate 4 x shard 256)" in next(text for command, text in said.items() if " plan " in command)
    rows = json.loads(next(text for command, text in said.items() if " ledger " in command))["rows"]
    assert [row["step"] for row in rows] == list(range(1, 13))  # each once, though the run was interrupted
    assert "bits_per_byte:" in next(t for c, t in said.items() if "--held-out" in c and "--dry-run" not in c)
    revisions = sorted(path.name for path in (place / "revisions").iterdir())
    assert revisions == [f"stage1-step{step}-tokens1B" for step in (12, 4, 8)]
    assert "<svg" in (place / "status.html").read_text() and list((place / "metrics").rglob("*tfevents*"))
    assert (place / "tiny-soup/config.json").exists() and "average of the weights of 2 runs" in (
        place / "tiny-soup/README.md"
    ).read_text()


def test_the_page_names_files_that_exist() -> None:
    text = GUIDE.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (GUIDE.parent / link).exists(), link
    recipes = {word for word in re.findall(r"jobs/recipes/runs/[a-z0-9_]+\.yaml", text)}
    assert recipes and all((REPOSITORY / name).exists() for name in recipes)
    assert len(list((REPOSITORY / "jobs/recipes/runs/ablations").glob("*.yaml"))) == 7
