"""`python -m handoff`: the command line."""

from handoff.cli.parser import main

main()
