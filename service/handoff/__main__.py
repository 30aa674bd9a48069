"""The program `handoff`, also as `python -m handoff`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are loaded ends it without a traceback

from handoff.cli.parser import main  # after the signal

if __name__ == "__main__":
    main()
