"""Imports weights that other libraries trained, and writes weights for them."""
