"""The data plane's commands with nothing installed that only training or evaluation needs."""

import subprocess
import sys
from pathlib import Path

from jobs import train
from tests.jobs.cli.test_quality import recipe as recipe

ABSENT = "torch ray transformers datasets sympy boto3 s3fs gcsfs vllm".split()
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))"
DRAW = (
    "from jobs import funnel_figure; from dataplane.funnel import FunnelRow; "
    "print(funnel_figure.figure([FunnelRow('a', fate, '', 1, 1, 1) for fate in ('in', 'kept')], 's'))"
)


def run(*arguments: object) -> str:
    command = [sys.executable, "-c", f"{BLOCK}; from jobs.cli import app; app()", "data", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rules_plans_classifiers_and_pictures_need_the_data_extra_only(recipe: Path, tmp_path: Path) -> None:
    out = run("quality", "train", recipe, "--root", tmp_path / "root")
    assert "ROC-AUC" in out
    run("quality", "report", "tiny", "--root", tmp_path / "root", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "report.html").exists()
    tried = run("try", "gopher_quality", "--documents", recipe.parent / "good", "--sample", 20)
    assert "20 of 90 documents seen" in tried
    assert "core-hours" in run("plan", Path(train.__file__).parent / "recipes/mixes/olmo2_mix_1124.yaml")
    assert "<svg" in subprocess.check_output([sys.executable, "-c", f"{BLOCK}; {DRAW}"], text=True)


def test_what_is_blocked_is_blocked() -> None:
    """The control."""
    command = [sys.executable, "-c", f"{BLOCK}; import torch"]
    assert "ModuleNotFoundError" in subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
