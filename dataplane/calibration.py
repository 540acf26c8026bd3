"""How good the scores of a two-class classifier are: precision and recall by threshold, ROC-AUC, average precision, calibration.

In: scores float [n] (the probability of the positive class) and is_positive bool [n]. Out: numbers and JSON values. A document is taken
at a threshold when score >= threshold, as the selection rules write it; ties are never split.
Sources: Hanley and McNeil 1982 (the AUC and its standard error); Guo et al. 2017, arXiv 1706.04599 (reliability, expected
calibration error over bins of equal width); Brier 1950.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from triplane.errors import UsageError

NUM_BINS = 10


def evaluate(scores: np.ndarray, is_positive: np.ndarray, thresholds: Sequence[float]) -> dict[str, Any]:
    """All of it as JSON values. Raises UsageError when a class has no document or a score is not a number."""
    scores, is_positive = np.asarray(scores, np.float64), np.asarray(is_positive, bool)
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if not positives or not negatives:
        raise UsageError(
            f"{positives} positive and {negatives} negative documents cannot be compared: hold out some of each class"
        )
    if not np.isfinite(scores).all():
        raise UsageError("a score is not a number: score only documents that have words")
    auc = roc_auc(scores, is_positive)
    bins = reliability(scores, is_positive)
    return {
        "positives": positives,
        "negatives": negatives,
        "roc_auc": auc,
        "roc_auc_standard_error": auc_standard_error(auc, positives, negatives),
        "average_precision": average_precision(scores, is_positive),
        "brier": float(np.mean((np.clip(scores, 0, 1) - is_positive) ** 2)),
        "expected_calibration_error": expected_calibration_error(bins),
        "thresholds": [at_threshold(scores, is_positive, threshold) for threshold in thresholds],
        "reliability": bins,
    }


def roc_auc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """The chance that a positive document scores above a negative one, equal scores counting half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(is_positive.sum())
    above = ranks[is_positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(scores) - positives)))


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Hanley and McNeil's standard error of an AUC over so many documents of each class."""
    both_above = auc / (2 - auc)
    above_both = 2 * auc * auc / (1 + auc)
    variance = (
        auc * (1 - auc) + (positives - 1) * (both_above - auc * auc) + (negatives - 1) * (above_both - auc * auc)
    ) / (positives * negatives)
    return math.sqrt(max(variance, 0.0))


def precision_recall(scores: np.ndarray, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every distinct score as a threshold, highest first -> (threshold, precision, recall), float64 [t] each."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(is_positive[order])[last_of_tie]
    return scores[order][last_of_tie], hits / (last_of_tie + 1), hits / is_positive.sum()


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """The mean of precision over recall, as a sum of steps: no interpolation, which would flatter."""
    _, precision, recall = precision_recall(scores, is_positive)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def at_threshold(scores: np.ndarray, is_positive: np.ndarray, threshold: float) -> dict[str, Any]:
    """One row of the table: what is taken at `score >= threshold`. precision is None where nothing is taken."""
    taken = scores >= threshold
    hits = int((taken & is_positive).sum())
    return {
        "threshold": threshold,
        "taken": int(taken.sum()),
        "taken_fraction": float(taken.mean()),
        "precision": hits / int(taken.sum()) if taken.any() else None,
        "recall": hits / int(is_positive.sum()),
        "f1": 2 * hits / (int(taken.sum()) + int(is_positive.sum())),
    }


def reliability(scores: np.ndarray, is_positive: np.ndarray, num_bins: int = NUM_BINS) -> list[dict[str, Any]]:
    """Bins of equal width over [0, 1]: documents, mean score, share of positives (both None in an empty bin).

    fastText's probability can exceed 1 by 1e-5; it counts in the last bin.
    """
    index = np.clip((scores * num_bins).astype(np.int64), 0, num_bins - 1)
    rows = []
    for number in range(num_bins):
        inside = index == number
        rows.append(
            {
                "low": number / num_bins,
                "high": (number + 1) / num_bins,
                "documents": int(inside.sum()),
                "mean_score": float(scores[inside].mean()) if inside.any() else None,
                "positive_fraction": float(is_positive[inside].mean()) if inside.any() else None,
            }
        )
    return rows


def expected_calibration_error(bins: Sequence[dict[str, Any]]) -> float:
    """The mean distance of score and share of positives, bins weighted by documents; 0 is calibrated."""
    total = sum(row["documents"] for row in bins)
    gaps = (row["documents"] * abs(row["mean_score"] - row["positive_fraction"]) for row in bins if row["documents"])
    return sum(gaps) / total
