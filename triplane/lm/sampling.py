"""How the next token is chosen: the likeliest, or drawn by a seed. Logits [A, V] in, token ids out.

A draw is the inverse of the cumulative distribution at a number that follows from (seed, prompt, place in the answer) alone, so a sampled answer
is the same in any batch. Source of top-p: Holtzman et al. 2019, arXiv 1904.09751.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from triplane.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 takes the likeliest token; `top_p` keeps the likeliest tokens that make up this much of the distribution."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"temperature {self.temperature} and top_p {self.top_p}: use a temperature of 0 or more, and 0 < top_p <= 1"
            )

    def choose(self, logits_AV: Tensor, draws: Sequence[tuple[int, int]]) -> list[int]:
        """A token for each row; `draws[a]` is (number of the prompt, tokens before in its answer)."""
        if self.temperature == 0:
            return [int(token) for token in logits_AV.argmax(-1).tolist()]
        sorted_AV, ids_AV = (
            (logits_AV.float() / self.temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
        )
        total_AV = sorted_AV.double().cumsum(-1)
        kept_A = ((total_AV - sorted_AV) < self.top_p).sum(-1)  # the first one at least
        mass_A = total_AV.gather(1, kept_A[:, None] - 1)
        uniform_A = torch.tensor([[self._uniform(*draw)] for draw in draws], dtype=torch.float64).to(mass_A.device)
        place_A1 = torch.searchsorted(total_AV, uniform_A * mass_A, right=True).minimum(kept_A[:, None] - 1)
        return [int(token) for token in ids_AV.gather(1, place_A1)[:, 0].tolist()]

    def _uniform(self, prompt: int, place: int) -> float:
        """In [0, 1)."""
        return float(np.random.Generator(np.random.Philox(key=[self.seed, (prompt << 32) + place])).random())


GREEDY = Sampling()
