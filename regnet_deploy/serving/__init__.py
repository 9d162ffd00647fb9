"""Runtimes, protocol and the HTTP server. Never imports torch."""
