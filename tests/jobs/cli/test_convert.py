"""`triplane convert` as a user runs it: from each layout to each, with equal weights."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from typer.testing import CliRunner

from jobs.cli import app
from trainplane.run import train
from triplane.lm import export, olmo_core_layout, weights

GOLDEN = Path(__file__).parents[2] / "golden" / "olmo_core_step1"


def convert(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["convert", *arguments, "--json"])
    return done.exit_code, done.stdout if done.exit_code == 0 else done.stderr


def assert_equal(one: torch.nn.Module, other: torch.nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_goes_to_both_layouts_and_comes_back(root: str, make_recipe: Callable, tmp_path: Path) -> None:
    run = train(make_recipe(), root)
    model, _ = weights.load_model(run.checkpoint_url)
    hf, core = tmp_path / "hf", tmp_path / "core"
    code, out = convert(run.url, "--out", str(hf))
    assert code == 0 and json.loads(out)["from"] == "checkpoint"
    assert_equal(export.from_huggingface(hf), model)
    code, out = convert(str(hf), "--to", "olmo-core", "--out", str(core))
    assert code == 0 and json.loads(out)["from"] == "huggingface"
    assert_equal(olmo_core_layout.from_olmo_core(str(core)), model)


def test_olmo_cores_own_checkpoint_becomes_a_hugging_face_folder(tmp_path: Path) -> None:
    code, out = convert(str(GOLDEN), "--out", str(tmp_path / "hf"))
    assert code == 0 and json.loads(out)["from"] == "olmo-core"
    with torch.no_grad():
        logits = export.from_huggingface(tmp_path / "hf")(torch.arange(20)[None]).flatten()
    assert torch.allclose(logits, torch.tensor(json.loads((GOLDEN / "logits.json").read_text())), rtol=0, atol=1e-6)


def test_a_dry_run_writes_nothing_and_wrong_use_says_what_is_missing(tmp_path: Path) -> None:
    code, _ = convert(str(GOLDEN), "--out", str(tmp_path / "hf"), "--dry-run")
    assert code == 0 and not (tmp_path / "hf").exists()
    for arguments, words in (
        ([str(GOLDEN)], "name it with --out"),
        ([str(GOLDEN), "--to", "checkpoint"], "say below which --root"),
        ([str(GOLDEN), "--to", "checkpoint", "--root", str(tmp_path)], "to a Hugging Face folder first"),
    ):
        code, err = convert(*arguments)
        assert code == 2 and words in err
