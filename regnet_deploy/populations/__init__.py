"""Trained populations: what the store of a sweep, or a table from elsewhere, says of each network."""
