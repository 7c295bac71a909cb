"""Prompts from templates: `{one|two}` and `__wildcards__`, by the package `dynamicprompts` (extra `prompts`)."""

import logging
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from darkroom_client._text import did_you_mean

# What the package logs, with tracebacks, comes as an error as well.
logging.getLogger("dynamicprompts").addHandler(logging.NullHandler())
_DRAWS = 10  # for each prompt that is wanted: some come out alike


class Templates:
    """Makes prompts of templates.

    :param wildcards: folder of files with the texts for `__NAME__`, one a line; None: no wildcards.
    :raises ModuleNotFoundError: without the extra `prompts`.
    """

    def __init__(self, wildcards: Path | None = None) -> None:
        try:
            from dynamicprompts.wildcards import WildcardManager
            from dynamicprompts.wildcards.values import WildcardValues
        except ModuleNotFoundError as error:
            text = f"templates need the extra `prompts` ({error}): pip install 'darkroom-diffusion[prompts]'"
            raise ModuleNotFoundError(text, name=error.name) from None

        class Wildcards(WildcardManager):
            """The package's own, which leaves a wildcard that it does not know as it stands, with a warning."""

            def get_values(self, wildcard: str) -> WildcardValues:
                """:raises ValueError: if there is no such wildcard"""
                values = super().get_values(wildcard)
                if not values:
                    raise ValueError(_unknown(wildcard, wildcards, self.get_collection_names()))
                return values

        self._wildcards = Wildcards(wildcards)

    def combinations(self, template: str, most: int) -> list[str]:
        """All different prompts of a template, in its order.

        :raises ValueError: if it is no template, or there are more than `most`.
        """
        from dynamicprompts.generators import CombinatorialPromptGenerator

        generator = CombinatorialPromptGenerator(self._wildcards, ignore_whitespace=True)
        prompts = _prompts(lambda: generator.generate(template, most + 1), template)
        if len(prompts) > most:
            raise ValueError(f"{template!r} has more than {most} combinations")
        return list(dict.fromkeys(prompts))

    def samples(self, template: str, count: int, seed: int | None) -> list[str]:
        """Up to `count` different prompts of a template by chance; the same ones for the same seed.

        :raises ValueError: if it is no template.
        """
        from dynamicprompts.generators import RandomPromptGenerator

        generator = RandomPromptGenerator(self._wildcards, seed, ignore_whitespace=True)
        prompts = _prompts(lambda: generator.generate(template, _DRAWS * count), template)
        return list(islice(dict.fromkeys(prompts), count))


def _prompts(generate: Callable[[], list[str]], template: str) -> list[str]:
    from pyparsing import ParseException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package uses old names of pyparsing, and explains itself at length
            return generate() or [template]
    except ParseException as error:
        form = "write {one|two} for a choice and __NAME__ for a wildcard; # begins a comment"
        raise ValueError(f"{error.line[error.column - 1 :]!r} in {error.line!r} cannot be read: {form}") from None
    except RecursionError:
        raise ValueError(f"{template!r} needs a wildcard or variable within itself") from None
    except KeyError as error:
        raise ValueError(f"{template!r}: {error.args[0]}") from None  # a variable that is not set


def _unknown(name: str, folder: Path | None, known: set[str]) -> str:
    where = (
        f"in {folder.name or folder}; there are: {', '.join(sorted(known)) or 'none'}"  # visitors of a page see this
        if folder
        else "as no folder of them is given"
    )
    return f"there is no wildcard {name!r}{did_you_mean(name, known)} {where}"
