"""The command line: one file per command - options, one library call, rendering. Nothing heavy is imported at the top."""
