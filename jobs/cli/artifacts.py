"""`triplane verify` and `triplane gc`."""


def verify() -> None:
    """Re-reads every byte of an artifact and compares it with its manifest."""


def gc() -> None:
    """Removes what crashed attempts left."""
