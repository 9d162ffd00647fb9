"""Load on a running server: open loop, measured from the intended send time; and the settings that bear most of it."""
