"""A step that does not end is ended, with stacks and one sentence that names who is behind: real processes, stopped for real."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainplane.watchdog_ranks import STEPS_BEFORE
from trainplane.watchdog import FIRST_STEP_SECONDS, Heard, Heartbeat, Watchdog, diagnosis, stacks

SECONDS = 3.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pairs left."""
    folder = tmp_path_factory.mktemp("watchdog")
    command = [sys.executable, "-m", "tests.trainplane.watchdog_ranks", str(folder), str(SECONDS)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2], text=True,
                          timeout=240, stderr=subprocess.PIPE)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def ended(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "codes.json").read_text())


def hung(folder: Path, scenario: str) -> list[dict[str, Any]]:
    log = folder / f"{scenario}.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_the_other_ends(folder: Path, ended: dict[str, Any], stopped: int) -> None:
    scenario, other = f"stop-{stopped}", 1 - stopped
    assert ended["landed"][scenario]
    assert ended["codes"][scenario][other] == 1
    (event,) = hung(folder, scenario)
    assert event["event"] == "hung" and event["rank"] == other and event["step"] >= STEPS_BEFORE
    assert "all_reduce" in event["stacks"] and "_tell_and_hear" in event["stacks"]  # every thread of it
    said = (folder / f"{scenario}-{other}").read_text()
    assert "rank" in said and "all_reduce" in said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"error: training stands still on rank {other} in step ") and last.count("error:") == 1
    assert f"rank {stopped} (host " in last and f"pid {ended['pids'][scenario][stopped]})" in last
    assert "the same command goes on from the last checkpoint" in last


def test_a_rank_that_is_behind_is_named_by_both_and_both_show_their_stacks(folder: Path, ended: dict[str, Any]) -> None:
    assert ended["codes"]["behind-1"] == [1, 1]
    events = {event["rank"]: event for event in hung(folder, "behind-1")}
    assert events.keys() == {0, 1}
    for event in events.values():
        assert f"rank 1 (host {os.uname().nodename}, pid {ended['pids']['behind-1'][1]}) in steps (" in event["reason"]
        assert re.search(r"rank 0 \(host .*, pid \d+\) in \w*all_reduce", event["reason"])
    assert "all_reduce" in events[0]["stacks"] and "all_reduce" not in events[1]["stacks"]


def test_the_undisturbed_pair_ends_and_shows_nothing(folder: Path, ended: dict[str, Any]) -> None:
    """The control. It rests longer than a step may take, too."""
    assert ended["codes"]["undisturbed"] == [0, 0]
    assert hung(folder, "undisturbed") == []
    assert "hangs" not in "".join((folder / f"undisturbed-{rank}").read_text() for rank in range(2))


def test_ranks_that_were_all_paused_go_on(folder: Path, ended: dict[str, Any]) -> None:
    """For longer than a step may take, as their machine was: none takes the others for silent."""
    assert ended["landed"]["paused"]
    assert (ended["codes"]["paused"], hung(folder, "paused")) == ([0, 0], [])


def test_the_first_step_has_time_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as every rank is heard of; later steps do not."""
    dog = Watchdog(30, step=7)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 31)
    assert not dog._must_end()
    monkeypatch.setattr(time, "monotonic", lambda: now + 30 + FIRST_STEP_SECONDS + 1)
    assert dog._must_end()
    dog.beat()
    assert not dog._must_end()
    now += 30 + FIRST_STEP_SECONDS + 31
    monkeypatch.setattr(time, "monotonic", lambda: now + 1)
    assert dog._must_end()


def test_one_rank_alone_is_not_watched() -> None:
    with Watchdog(0.01, ended=lambda sentence: pytest.fail(sentence)) as dog:
        time.sleep(0.1)
        dog.beat()
    assert dog._threads == []


def heard(step: int, ago: float = 0.0, is_done: bool = False) -> Heard:
    """`ago` seconds before now, which is only known when the test runs."""
    return Heard(Heartbeat(step, "host b, pid 2", is_done=is_done), -ago)


@pytest.mark.parametrize(
    ("others", "answered_ago", "words"),
    [
        ({0: heard(7), 2: heard(7, ago=60)}, 0, "rank 2 (host b, pid 2) said nothing for 60 s, its last step was 7;"),
        ({0: heard(7), 2: heard(6)}, 0, "rank 2 (host b, pid 2) is behind, at step 6 where others are at 7;"),
        ({0: heard(8), 2: heard(8)}, 0, "rank 1 (host a, pid 1) is behind, at step 7 where others are at 8;"),
        (
            {0: heard(7), 2: heard(7)},
            0,
            "every rank answers and has taken 7 steps: rank 1 (host a, pid 1) in train (a:1); rank 0",
        ),
        ({0: heard(7, ago=60), 2: heard(7, ago=60)}, 60, "rank 0 (host b, pid 2), which keeps the heartbeats, has not"),
        ({0: heard(7), 2: heard(7, ago=60, is_done=True)}, 0, "every rank answers and has taken 7 steps: rank 1"),
    ],
)
def test_who_is_blamed(others: dict[int, Heard], answered_ago: float, words: str) -> None:
    now = time.monotonic()
    then = {rank: Heard(one.heartbeat, now + one.at) for rank, one in others.items()}
    sentence = diagnosis(1, Heartbeat(7, "host a, pid 1", "train (a:1)"), then, now - answered_ago, 30)
    assert sentence.startswith("training stands still on rank 1 in step 8, and no step may take 30 s: ")
    assert words in sentence and "\n" not in sentence


def test_stacks_are_of_every_thread() -> None:
    assert "test_stacks_are_of_every_thread" in stacks() and "most recent call first" in stacks()
