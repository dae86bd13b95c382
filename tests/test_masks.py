"""Masks by what they mean: the same as their boolean array, at the cost of what is visible."""
