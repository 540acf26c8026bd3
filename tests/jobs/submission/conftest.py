"""Submissions to plant mistakes into."""

from tests.jobs.submission.planted_submission import dashboard, listener, make, tokenizer

__all__ = ["dashboard", "listener", "make", "tokenizer"]
