"""`triplane demo`."""


def demo() -> None:
    """The whole path on text this machine has."""
