"""The command line in a terminal."""

import os
import re
import select
import sys

import pytest

pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """Runs `darkroom` with a terminal of 40 lines as stdin, stdout and stderr."""

    def __init__(self, *arguments: str, columns: int = 100, **environment: str) -> None:
        self._output, self._seen = b"", 0
        code = "from darkroom_client.cli import main; main()"
        size = {"COLUMNS": str(columns), "LINES": "40"}
        variables = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **size, **environment}
        main, other = pty.openpty()
        termios.tcsetwinsize(other, (40, columns))
        self._main = main
        self.pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", code, *arguments],
            variables,
            file_actions=[(os.POSIX_SPAWN_DUP2, other, n) for n in range(3)] + [(os.POSIX_SPAWN_CLOSE, main)],
        )
        os.close(other)

    def read(self) -> None:
        """Reads to the end.

        :raises TimeoutError: after a long silence.
        """
        while True:
            if not select.select([self._main], [], [], 20)[0]:
                raise TimeoutError(self.text)
            try:
                data = os.read(self._main, 65536)
            except OSError:  # how Linux says that the other side is closed
                return
            if not data:
                return
            self._output += data

    def read_until(self, text: str) -> None:
        """Reads until this has come, whatever its colours, after what earlier calls waited for.

        :raises TimeoutError: after a long silence.
        """
        while text not in self._plain[self._seen :]:
            if not select.select([self._main], [], [], 20)[0]:
                raise TimeoutError(self._plain[self._seen :])
            self._output += os.read(self._main, 65536)
        self._seen = len(self._plain)

    def write(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def exit_code(self) -> int:
        self.read()
        os.close(self._main)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def text(self) -> str:
        return self._output.decode(errors="replace")

    @property
    def _plain(self) -> str:
        return _ESCAPES.sub("", self.text)

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self._plain.splitlines() if line.strip()]
