"""What is logged, and what never is."""

import io
import json

import structlog

from handoff.logs import configure_logs, flush_logs

SAID = "check failed\nDETAIL:  Failing row contains (1, rosebud\nand more rosebud).\nHINT: no"


def test_a_logged_stack_leaves_out_the_row_that_postgres_names() -> None:
    stream = io.StringIO()
    configure_logs("info", stream)
    try:
        try:
            raise ValueError(SAID)
        except ValueError as error:
            raise RuntimeError("the append failed") from error
    except RuntimeError:
        structlog.get_logger("test").exception("append.failed")

    flush_logs()
    logged = json.loads(stream.getvalue())
    assert logged["event"] == "append.failed"
    assert "check failed" in logged["exception"]
    assert "the append failed" in logged["exception"]
    assert "rosebud" not in logged["exception"]
