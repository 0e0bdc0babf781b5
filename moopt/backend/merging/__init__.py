"""Merging models in memory, by mergekit's methods: one tensor of each model at a time, never all of them."""

from moopt.backend.merging.merger import Merger
from moopt.backend.merging.operators import METHODS, Method
from moopt.backend.merging.recipe import Recipe

__all__ = ["METHODS", "Merger", "Method", "Recipe"]
