"""`jobs/build_mix.py`, what spark-submit runs: its exit codes are those of `triplane data build`."""

import os
import signal
from pathlib import Path

import pytest

from dataplane import build
from jobs import build_mix
from triplane.errors import LostRace

RECIPE = """
name: x
seed: 1
tokenizer: unset
sequence_length_tokens: 16
shard_tokens: 1000
held_out_fraction: 0.0
sources: [flan]
mixes:
  - name: x
    tokens: 64
    shares: {flan: 1.0}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_wrong_use(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    assert build_mix.main([]) == 2
    assert "usage: build_mix RECIPE ROOT" in capsys.readouterr().err
    assert build_mix.main([recipe, "/root", "sed=3"]) == 2
    assert "override sed=3: unknown key 'sed': did you mean 'seed'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ends", "exit_code", "said"),
    [
        (LostRace("another build has this name"), 3, "error: another build has this name"),
        (PermissionError(13, "Permission denied", "/root"), 1, "error: cannot use /root (Permission denied)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_the_build_s_own_end(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    ends: BaseException,
    exit_code: int,
    said: str,
) -> None:
    def run(*arguments: object) -> None:
        raise ends

    monkeypatch.setattr(build, "run", run)
    assert build_mix.main([recipe, "/root"]) == exit_code
    assert said in capsys.readouterr().err


def test_a_notice_to_leave_is_a_preemption(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    monkeypatch.setattr(build, "run", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    assert build_mix.main([recipe, "/root"]) == 143
