"""The file of a page that a command writes."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from handoff.cli.start import fail


def written(out: Path, text: str) -> int:
    """Write the whole page or nothing; return the exit status: 2, with a sentence, if it can't be written."""
    try:
        with NamedTemporaryFile("w", encoding="utf-8", dir=out.parent, delete=False) as file:
            try:
                file.write(text)
                file.close()
                mask = os.umask(0)
                os.umask(mask)
                Path(file.name).chmod(0o666 & ~mask)  # as any other file; a temporary one is for its owner only
                Path(file.name).replace(out)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        return fail(f"{out} can't be written: {error.strerror or error}.")
    return 0
