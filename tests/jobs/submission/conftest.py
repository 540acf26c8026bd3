"""A kubectl that records, and submissions to plant mistakes into."""

from tests.jobs.submission.fake_kubectl import cluster
from tests.jobs.submission.planted_submission import dashboard, listener, make, tokenizer

__all__ = ["cluster", "dashboard", "listener", "make", "tokenizer"]
