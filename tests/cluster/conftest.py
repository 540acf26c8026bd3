"""A root to train in, and recipes to train."""

from tests.training_fixtures import make_recipe, root

__all__ = ["make_recipe", "root"]
