"""What the demo promises, checked on what it measured: nothing here knows the answer beforehand.

In: the items and documents every checkpoint was scored on, paired. Out: differences with 95 % intervals, and claims
that hold or do not, each with its figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959964  # half-width of a 95 % interval in standard errors


@dataclass(frozen=True)
class Interval:
    """A difference and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Scored:
    """One checkpoint's scores. Arrays of one name are in the same order for every checkpoint, so they can be paired.

    `correct` bool[items]; `bits` and `bytes` are float64[documents] by source: the sum of -log2 p, and the UTF-8 length.
    """

    name: str
    correct: np.ndarray
    bits: Mapping[str, np.ndarray]
    bytes: Mapping[str, np.ndarray]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def bits_per_byte(self, sources: Sequence[str] | None = None) -> float:
        """Of the documents of `sources` (all by default) taken as one text."""
        chosen = list(self.bits) if sources is None else sources
        return float(sum(self.bits[s].sum() for s in chosen) / sum(self.bytes[s].sum() for s in chosen))


@dataclass(frozen=True)
class Claim:
    """A promise, whether it held this time, and the figures that say so."""

    text: str
    holds: bool
    evidence: str


def paired_difference(after: np.ndarray, before: np.ndarray) -> Interval:
    """Mean of `after - before` over the same items, with the normal interval of the paired differences."""
    difference = after.astype(np.float64) - before.astype(np.float64)
    error = NORMAL_95 * difference.std(ddof=1) / np.sqrt(len(difference))
    mean = float(difference.mean())
    return Interval(mean, mean - float(error), mean + float(error))


def paired_rate_difference(after_bits: np.ndarray, before_bits: np.ndarray, num_bytes: np.ndarray) -> Interval:
    """Difference in bits per byte over the same documents, with the interval of a ratio estimator.

    The mean is sum(after - before) / sum(bytes), so long documents weigh more; its error is linearised:
    residual_i = (after_i - before_i) - mean * bytes_i (Cochran, Sampling Techniques, section 2.11).
    """
    difference = after_bits - before_bits
    total = float(num_bytes.sum())
    mean = float(difference.sum()) / total
    residual = difference - mean * num_bytes
    count = len(difference)
    error = NORMAL_95 * float(np.sqrt(count / (count - 1) * np.square(residual).sum())) / total
    return Interval(mean, mean - error, mean + error)


def accuracy_rise(after: Scored, before: Scored) -> Interval:
    return paired_difference(after.correct, before.correct)


def bits_per_byte_change(after: Scored, before: Scored) -> Interval:
    """Over the documents of all sources."""
    sources = list(after.bits)
    joined = [np.concatenate([scored[s] for s in sources]) for scored in (after.bits, before.bits, after.bytes)]
    return paired_rate_difference(*joined)


def check_claims(pretrained: Scored, ingredients: Sequence[Scored], soup: Scored) -> list[Claim]:
    """The demo's promises: every order learns arithmetic, and the soup models text better than its ingredients do on average."""
    return [*(_rises(pretrained, ingredient) for ingredient in ingredients), _soup_beats_mean(ingredients, soup)]


def _rises(pretrained: Scored, ingredient: Scored) -> Claim:
    rise = accuracy_rise(ingredient, pretrained)
    return Claim(
        text=f"Mid-training teaches arithmetic ({ingredient.name})",
        holds=rise.low > 0,
        evidence=f"{pretrained.accuracy:.1%} → {ingredient.accuracy:.1%}; "
        f"paired difference {rise.mean:+.3f} (95 % {rise.low:+.3f} to {rise.high:+.3f}), n = {len(ingredient.correct)}",
    )


def _soup_beats_mean(ingredients: Sequence[Scored], soup: Scored) -> Claim:
    of_soup = soup.bits_per_byte()
    of_ingredients = [ingredient.bits_per_byte() for ingredient in ingredients]
    mean = float(np.mean(of_ingredients))
    return Claim(
        text="The soup beats its ingredients' mean in bits per byte",
        holds=of_soup < mean,
        evidence=f"{of_soup:.4f} against a mean of {mean:.4f} (" + ", ".join(f"{b:.4f}" for b in of_ingredients) + ")",
    )
