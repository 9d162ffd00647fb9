"""Opens the variants of a bundle, compares them with the golden set and runs them. Does not import torch."""
