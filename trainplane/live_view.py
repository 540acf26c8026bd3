"""What a terminal shows of a run while it trains: (watch, recipe, device) -> rate of the last seconds, MFU, loss and learning rate, beside
the bar's count and ETA.

Rows come from training in this process, or, twice a second, from the first of Ray's workers. MFU needs a device whose peak is known
(`flops`); elsewhere the FLOP/s themselves are shown.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from trainplane import flops, ledger
from trainplane import recipe as recipes
from trainplane.plan import Plan
from trainplane.recipe import RunRecipe
from trainplane.run import Watch
from triplane import metrics
from triplane.progress import amount

WINDOW_SECONDS = 30.0


class LiveView(Watch):
    """A watch that also writes these figures behind the bar's name."""

    def __init__(
        self, watch: Watch, recipe: RunRecipe, device: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(watch.bar)
        self._name, self._run = watch.bar.name, recipe.name
        config = recipes.model_config(recipe)
        self._per_token = flops.flops_per_token(config, recipe.data.sequence_length_tokens)
        peak = flops.peak_flops(device)
        self._peak = None if peak is None else peak * max(1, recipe.runtime.num_workers)
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, row: ledger.Row) -> None:
        self._note(row["tokens_seen"], row["loss"], row["lr"])
        before = self.seen
        super().__call__(row)
        metrics.count("tokens_total", self.seen - before, plane="train")

    def _note(self, tokens_seen: int, loss: float, lr: float) -> None:
        now = self._clock()
        if not self._seen and not self.bar.before:
            self.bar.before = tokens_seen  # of earlier attempts, and of the first step, which compiles
        if self._seen and tokens_seen < self._seen[-1][1]:  # a failure put the run back to its last checkpoint
            self._seen.clear()
        self._seen.append((now, tokens_seen))
        while now - self._seen[0][0] > WINDOW_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        rate = (last - first) / (end - begin) if end > begin else None
        metrics.gauge("loss", loss, run=self._run)
        parts = [f"loss {loss:.3f}", f"lr {lr:.2e}"]
        if rate is not None:
            parts += [f"now {amount(rate)} tokens/s", self._use(rate)]
        self.bar.name = ", ".join([self._name, *parts])

    def _use(self, rate: float) -> str:
        done = rate * self._per_token
        if self._peak:
            metrics.gauge("mfu_ratio", done / self._peak, run=self._run)
        return f"MFU {100 * done / self._peak:.1f} %" if self._peak else f"{amount(done)}FLOP/s"


def device_name() -> str:
    """Of the first GPU, else `cpu`."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def viewed(launch: Callable[..., None]) -> Callable[[Plan, Watch, bool], None]:
    """A launch whose watch shows the live view."""

    def launched(plan: Plan, watch: Watch, fall_back: bool = False, **more: Any) -> None:
        live = LiveView(watch, plan.recipe, device_name())
        launch(plan, live, fall_back, **more)
        watch.seen = live.seen  # what the bar has counted

    return launched
