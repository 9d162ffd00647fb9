"""Opens what a bundle holds, proves it on the golden set, runs it. Never torch."""
