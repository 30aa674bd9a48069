"""The command line: `handoff COMMAND`. Each command builds what it needs and runs it; none holds logic of its own."""
