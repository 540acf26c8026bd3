"""The errors a user sees: each message is one sentence that says what, where and what to do; each class has an exit code."""


class TriplaneError(Exception):
    """Something failed. Exit code 1."""

    exit_code = 1


class UsageError(TriplaneError):
    """The command or recipe is wrong; nothing was started. Exit code 2."""

    exit_code = 2


class LostRace(TriplaneError):
    """Another writer committed the same name with other content. Exit code 3."""

    exit_code = 3


class NotFound(TriplaneError):
    """A named object does not exist."""


class Corrupt(TriplaneError):
    """Bytes read are not the bytes written: a checksum, a length or a format does not hold."""


class Refused(TriplaneError):
    """The request is well formed but unsafe to carry out: an unknown schema version, a changed recipe, an accounting gap."""
