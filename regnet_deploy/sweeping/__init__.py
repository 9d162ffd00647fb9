"""Sweeps: a population of networks is trained, each with the same recipe, and every result is kept at once."""
