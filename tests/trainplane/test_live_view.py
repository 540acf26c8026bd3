"""The line a user looks at while a run trains: every figure from a clock and rows that are known."""

import io
import json
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from trainplane import cluster
from trainplane import recipe as recipes
from trainplane.flops import flops_per_token
from trainplane.live_view import LiveView, viewed
from trainplane.preemption import Notice
from trainplane.recipe import RunRecipe
from trainplane.run import Watch
from triplane import metrics
from triplane.progress import Bar, Progress

MakeRecipe = Callable[..., RunRecipe]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def view(recipe: RunRecipe, device: str = "cpu") -> tuple[LiveView, Bar, Clock]:
    clock = Clock()
    bar = Bar("train tiny", 4608, "tokens", lambda bar: None, clock)
    return LiveView(Watch(bar), recipe, device, clock), bar, clock


def test_loss_and_the_rate_of_the_last_seconds(make_recipe: MakeRecipe) -> None:
    live, bar, clock = view(make_recipe())
    live({"tokens_seen": 384, "loss": 4.5, "lr": 3e-4})
    assert bar.name == "train tiny, loss 4.500, lr 3.00e-04" and bar.done == 384
    for tokens, seconds in ((768, 1.0), (1152, 2.0), (1536, 100.0), (1920, 101.0)):
        clock.now = seconds
        live({"tokens_seen": tokens, "loss": 4.0, "lr": 3e-4})
    assert bar.name.startswith(
        "train tiny, loss 4.000, lr 3.00e-04, now 384 tokens/s, "
    )  # not 19 a second, as since the start
    assert "1.92 k/4.61 k tokens (42%)" in bar.line() and "to go" in bar.line()


def test_mfu_where_the_peak_is_known(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(**{"runtime.num_workers": 2})
    per_token = flops_per_token(recipes.model_config(recipe), 48)
    for device, expected in (
        ("NVIDIA H100 80GB HBM3", f"MFU {100 * 4e8 * per_token / (2 * 989.5e12):.1f} %"),
        ("cpu", "FLOP/s"),
    ):
        live, bar, clock = view(recipe, device)
        live({"tokens_seen": 1, "loss": 4.0, "lr": 3e-4})
        clock.now = 1.0
        live({"tokens_seen": 400_000_001, "loss": 4.0, "lr": 3e-4})
        assert bar.name.endswith(expected), bar.name


def test_a_scrape_sees_the_same_figures(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, dict[str, str]]] = []
    for kind in ("count", "gauge"):
        monkeypatch.setattr(metrics, kind, lambda name, value, **labels: seen.append((name, value, labels)))
    recipe = make_recipe()
    per_token = flops_per_token(recipes.model_config(recipe), 48)
    live, _, clock = view(recipe, "NVIDIA H100 80GB HBM3")
    live({"tokens_seen": 384, "loss": 4.5, "lr": 3e-4})
    clock.now = 2.0
    live({"tokens_seen": 1152, "loss": 4.0, "lr": 3e-4})
    run = {"run": recipe.name}
    assert [one for one in seen if one[0] == "loss"] == [("loss", 4.5, run), ("loss", 4.0, run)]
    assert [one for one in seen if one[0] == "mfu_ratio"] == [("mfu_ratio", 384 * per_token / 989.5e12, run)]
    assert sum(value for name, value, _ in seen if name == "tokens_total") == 1152


def test_what_a_worker_of_ray_told_is_shown_once(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver looks twice a second at the last row that was told: the same one again is no row."""
    live, bar, clock = view(make_recipe())
    looks = threading.Semaphore(0)
    told: dict[str, bytes] = {}

    def get(key: str) -> bytes | None:
        if key == "triplane/run":
            clock.now += 1.0
            looks.release()
        return told.get(key)

    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cluster.internal_kv, "_internal_kv_get", get)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    with cluster._followed("triplane/run", live, Notice()):
        for tokens, loss in ((384, 4.5), (768, 4.25)):
            told["triplane/run"] = json.dumps({"tokens_seen": tokens, "loss": loss, "lr": 3e-4}).encode()
            assert all(looks.acquire(timeout=5) for _ in range(6))
    assert bar.name.startswith("train tiny, loss 4.250, lr 3.00e-04, now ") and bar.done == 768
    assert len(live._seen) == 2


def test_a_run_put_back_is_not_a_negative_rate(make_recipe: MakeRecipe) -> None:
    live, bar, clock = view(make_recipe())
    for tokens in (384, 768, 1152, 768, 1152):
        clock.now += 1.0
        live({"tokens_seen": tokens, "loss": 4.0, "lr": 3e-4})
    assert "now 384 tokens/s" in bar.name and bar.done == 1152


def test_what_was_trained_before_is_no_part_of_the_rate(make_recipe: MakeRecipe) -> None:
    live, bar, clock = view(make_recipe())
    for tokens, seconds in ((3840, 0.0), (4224, 2.0)):
        clock.now = seconds
        live({"tokens_seen": tokens, "loss": 4.0, "lr": 3e-4})
    assert bar.done == 4224 and bar.rate == pytest.approx(192) and bar.eta_seconds == pytest.approx(2.0)


def test_a_launch_is_given_the_view_and_counts_once(make_recipe: MakeRecipe) -> None:
    given: list[object] = []
    _, bar, _ = view(make_recipe())
    plan, watch = SimpleNamespace(recipe=make_recipe()), Watch(bar)

    def launch(plan: object, live: Watch, fall_back: bool) -> None:
        given.extend((live, fall_back))
        live({"tokens_seen": 4608, "loss": 4.0, "lr": 3e-4})

    viewed(launch)(plan, watch, True)  # type: ignore[arg-type]
    watch.to(4608)
    assert isinstance(given[0], LiveView) and given[1] is True and bar.done == 4608


def test_no_time_has_passed(make_recipe: MakeRecipe) -> None:
    live, bar, _ = view(make_recipe())
    live({"tokens_seen": 1, "loss": 4.0, "lr": 3e-4})
    live({"tokens_seen": 2, "loss": 4.0, "lr": 3e-4})
    assert bar.name == "train tiny, loss 4.000, lr 3.00e-04"


def test_a_terminal_shows_what_the_name_has_become() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(stream).bar("train tiny", 10, "tokens") as bar:
        bar.name = "train tiny, loss 4.321"
        bar.advance(10)
    assert "loss 4.321" in stream.getvalue()
