"""The log's form. Strangers' texts get into it, in messages and exceptions: no record can look like two."""

from __future__ import annotations

import logging
import sys
from typing import Any

from darkroom_plugins.quoting import printable

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_LINE = 2000  # characters
MAX_TRACEBACK = 200  # lines


class OneLine(logging.Formatter):
    """A record is one line; its traceback's lines are indented below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, MAX_LINE)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).splitlines()[-MAX_TRACEBACK:]
        return "\n".join(f"    {printable(line, MAX_LINE)}" for line in lines)


def log_to_stderr() -> None:
    """Write the records and warnings of all libraries to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
