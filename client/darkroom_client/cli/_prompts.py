"""The prompts of a run: arguments, the lines of stdin for `-`, and what templates make of both."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from darkroom_client.cli._report import fail
from darkroom_client.cli._run_options import MAX_PROMPTS, Prompting
from darkroom_client.cli._values import usage_error

_LINES = "prompts, one a line; blank lines and those that begin with # are skipped"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and where it stands."""

    text: str
    line: int | None = None  # of stdin, from 1; None: an argument


def read_prompts(given: Sequence[str], prompting: Prompting, seed: int | None) -> list[Prompt]:
    """The prompts that arguments stand for.

    :param seed: of what templates choose by chance; None: another one each time.
    :raises typer.BadParameter: if stdin has no prompts, or a template cannot be read.
    """
    expand = _expander(prompting, seed)
    prompts = [each for text in given for each in (_from_stdin() if text == "-" else [Prompt(text)])]
    if expand is None:
        return prompts
    if not prompts:
        usage_error("PROMPT", "a recipe's prompt is no template: give one beside --from")
    made: list[Prompt] = []
    problems: list[str] = []
    for prompt in prompts:
        try:
            made += [replace(prompt, text=text) for text in expand(prompt.text)]
        except ValueError as error:
            problems.append(f"line {prompt.line}: {error}" if prompt.line else str(error))
    if problems:
        usage_error("PROMPT", "\n".join(problems))
    return made


def _from_stdin() -> Iterator[Prompt]:
    data = sys.stdin.buffer.read()
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        usage_error("PROMPT", f"stdin is not UTF-8 text, from byte {error.start}: - reads {_LINES}")
    texts = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    prompts = [Prompt(text, number) for number, text in texts if text and not text.startswith("#")]
    yield from prompts or usage_error("PROMPT", f"stdin has no prompts: - reads {_LINES}")


def _expander(prompting: Prompting, seed: int | None) -> Callable[[str], list[str]] | None:
    """What makes prompts of a template; None: prompts are taken as they are."""
    if prompting.combinations and prompting.samples is not None:
        usage_error("--samples", "cannot be combined with --combinations")
    if not prompting.combinations and prompting.samples is None:
        if prompting.wildcards is not None:
            usage_error("--wildcards", "needs --combinations or --samples")
        return None
    from darkroom_client._templates import Templates

    try:
        templates = Templates(prompting.wildcards)
    except ModuleNotFoundError as error:
        fail(str(error))
    count = prompting.samples
    if count is None:
        return lambda template: templates.combinations(template, MAX_PROMPTS)
    return lambda template: templates.samples(template, count, seed)
