"""The program `handoff`, also as `python -m handoff`."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are loaded ends it without a traceback


def main() -> None:
    """Run a command; exit with its status."""
    if sys.argv[1:2] == ["hook"]:  # runs at each turn of an agent: the parser alone takes as long as all of the hook
        from handoff.cli.hook import from_words

        if (status := from_words(sys.argv[2:])) is not None:
            sys.exit(status)
    from handoff.cli.parser import main as parsed

    parsed()


if __name__ == "__main__":
    main()
