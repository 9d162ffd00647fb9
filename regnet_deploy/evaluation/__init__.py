"""Measures a network and its exported variants on labeled images that had no part in its training."""
