"""The line a user looks at while a run trains: every figure from a clock and rows that are known."""

import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from trainplane import recipe as recipes
from trainplane.flops import flops_per_token
from trainplane.live_view import LiveView, viewed
from trainplane.recipe import RunRecipe
from trainplane.run import Watch
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
    live({"tokens_seen": 384, "loss": 4.5})
    assert bar.name == "train tiny, loss 4.500" and bar.done == 384
    for tokens, seconds in ((768, 1.0), (1152, 2.0), (1536, 100.0), (1920, 101.0)):
        clock.now = seconds
        live({"tokens_seen": tokens, "loss": 4.0})
    assert bar.name.startswith("train tiny, loss 4.000, now 384 tokens/s, ")  # not 19 a second, as since the start
    assert "1.92 k/4.61 k tokens (42%)" in bar.line() and "to go" in bar.line()


def test_mfu_where_the_peak_is_known(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(**{"runtime.num_workers": 2})
    per_token = flops_per_token(recipes.model_config(recipe), 48)
    for device, expected in (
        ("NVIDIA H100 80GB HBM3", f"MFU {100 * 4e8 * per_token / (2 * 989.5e12):.1f} %"),
        ("cpu", "FLOP/s"),
    ):
        live, bar, clock = view(recipe, device)
        live({"tokens_seen": 1, "loss": 4.0})
        clock.now = 1.0
        live({"tokens_seen": 400_000_001, "loss": 4.0})
        assert bar.name.endswith(expected), bar.name


def test_on_ray_only_tokens_are_known(make_recipe: MakeRecipe) -> None:
    live, bar, clock = view(make_recipe())
    for tokens in (384, 384, 768):
        clock.now += 1.0
        live.to(tokens)
    assert bar.name.startswith("train tiny, now 192 tokens/s") and "loss" not in bar.name and bar.done == 768


def test_a_run_put_back_is_not_a_negative_rate(make_recipe: MakeRecipe) -> None:
    live, bar, clock = view(make_recipe())
    for tokens in (384, 768, 1152, 768, 1152):
        clock.now += 1.0
        live({"tokens_seen": tokens, "loss": 4.0})
    assert "now 384 tokens/s" in bar.name and bar.done == 1152


def test_what_was_trained_before_is_no_part_of_the_rate(make_recipe: MakeRecipe) -> None:
    live, bar, clock = view(make_recipe())
    for tokens, seconds in ((3840, 0.0), (4224, 2.0)):
        clock.now = seconds
        live({"tokens_seen": tokens, "loss": 4.0})
    assert bar.done == 4224 and bar.rate == pytest.approx(192) and bar.eta_seconds == pytest.approx(2.0)


def test_a_launch_is_given_the_view_and_counts_once(make_recipe: MakeRecipe) -> None:
    given: list[object] = []
    _, bar, _ = view(make_recipe())
    plan, watch = SimpleNamespace(recipe=make_recipe()), Watch(bar)

    def launch(plan: object, live: Watch, fall_back: bool) -> None:
        given.extend((live, fall_back))
        live({"tokens_seen": 4608, "loss": 4.0})

    viewed(launch)(plan, watch, True)  # type: ignore[arg-type]
    watch.to(4608)
    assert isinstance(given[0], LiveView) and given[1] is True and bar.done == 4608


def test_no_time_has_passed(make_recipe: MakeRecipe) -> None:
    live, bar, _ = view(make_recipe())
    live({"tokens_seen": 1, "loss": 4.0})
    live({"tokens_seen": 2, "loss": 4.0})
    assert bar.name == "train tiny, loss 4.000"


def test_a_terminal_shows_what_the_name_has_become() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(stream).bar("train tiny", 10, "tokens") as bar:
        bar.name = "train tiny, loss 4.321"
        bar.advance(10)
    assert "loss 4.321" in stream.getvalue()
