"""The log's form. Strangers' texts get into it, in messages and exceptions: no record can look like two."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

from darkroom_plugins.quoting import printable

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_LINE = 2000  # characters
MAX_TRACEBACK = 200  # lines
MAX_EXCEPTION = 20_000  # characters, of a JSON record


class OneLine(logging.Formatter):
    """A record is one line; its traceback's lines are indented below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, MAX_LINE)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).splitlines()[-MAX_TRACEBACK:]
        return "\n".join(f"    {printable(line, MAX_LINE)}" for line in lines)


def json_lines() -> logging.Formatter:
    """A record is one JSON object: time, level, logger, event, what came in `extra`, exception."""
    import structlog

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", key="time"),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _cut,
            structlog.processors.JSONRenderer(),
        ],
        keep_exc_info=False,
    )


def _cut(logger: object, method: str, event: Any) -> Any:
    """A record with its texts printable and cut; of its exception the end."""
    texts = {name: value for name, value in event.items() if isinstance(value, str)}
    if "exception" in texts:
        texts["exception"] = texts["exception"][-MAX_EXCEPTION:]
    return event | {
        name: printable(text, MAX_EXCEPTION if name == "exception" else MAX_LINE) for name, text in texts.items()
    }


def log_to_stderr(form: Literal["console", "json"] = "console") -> None:
    """Write the records and warnings of all libraries to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_lines() if form == "json" else OneLine(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
