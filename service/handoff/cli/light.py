"""What a process over stdio does without, so that it starts quickly: a desktop client starts one whenever it is opened.

Loading takes nearly all of that time, and a third of it is spent on what such a process never uses: the SDK's client and its
high-level server, an HTTP server, and colours for a log that is JSON.
"""

import gc
import sys
from importlib.util import find_spec, module_from_spec
from typing import Final

_BARE: Final = ("mcp", "mcp.server")  # packages whose modules are used, but not the names that they gather from them
_ABSENT: Final = ("rich", "uvicorn")  # what others import only if it is installed


def without_rich() -> None:
    """Let nothing load rich, which structlog would, for colours in tracebacks that are never printed."""
    sys.modules["rich"] = None  # pyright: ignore[reportArgumentType] - the documented way to make an import fail


def load_little() -> None:
    """Let what is imported from now on load less, and without collecting garbage, until `loaded` is called."""
    gc.disable()
    for name in _ABSENT:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType] - the documented way to make an import fail
    for name in _BARE:
        spec = find_spec(name)
        if spec is not None:
            sys.modules[name] = module_from_spec(spec)


def loaded() -> None:
    """Collect garbage again, but not among what was loaded, which stays."""
    gc.freeze()
    gc.enable()
