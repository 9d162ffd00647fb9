"""The time of networks on this machine: measured, kept, predicted, and what is chosen by it."""
