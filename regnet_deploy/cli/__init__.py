"""The command line: one file a command - options, one library call, rendering. Nothing heavy is imported at the top."""
