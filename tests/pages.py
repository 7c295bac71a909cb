"""The pages of the repository, and the blocks in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FOLDERS = (".github", "protos", "plugins", "server", "client", "tests")
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (*ROOT.glob("*.md"), *(page for folder in _FOLDERS for page in (ROOT / folder).rglob("*.md")))
    if "node_modules" not in page.parts
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str  # empty: a diagram, or what a program printed
    text: str
    line: int  # of its first line in the page

    @property
    def commands(self) -> list[str]:
        """Of a shell's block: its lines, continued ones joined, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in map(str.strip, lines) if line and not line.startswith("#")]

    @property
    def files(self) -> dict[str, str]:
        """Of a block of Python that is one or more files, each below its name as a comment: these."""
        return dict(re.findall(r"^# (\w+\.py)\n(.*?)(?=^# \w+\.py\n|\Z)", self.text, re.DOTALL | re.MULTILINE))


def blocks(page: str, section: str = "") -> list[Block]:
    """All blocks of a page, or of one of its sections, in order."""
    text = (ROOT / page).read_text()
    begin = text.index(f"\n## {section}\n") + 1 if section else 0
    end = text.find("\n## ", begin) if section else -1
    found = _BLOCK.finditer(text, begin, end if end >= 0 else len(text))
    return [Block(each[1], each[2], text.count("\n", 0, each.start()) + 2) for each in found]


def words(command: str) -> list[str]:
    """The words of a command of one program; none if it needs a shell."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return (
        [] if any(set(word) <= set("();<>|&") or "$" in word for word in lexer) else shlex.split(command, comments=True)
    )
