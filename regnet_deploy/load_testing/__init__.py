"""Load tests of a running server, with latency counted from the scheduled send times, and tuning of its settings."""
