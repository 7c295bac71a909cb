"""Weights for parts of a prompt, in the syntax of AUTOMATIC1111's web UI.

From its wiki, "Attention/emphasis" and "Infinite prompt length": ``(word)`` is 1.1 times as strong, ``[word]`` as weak;
``(word:1.3)`` has a factor of its own; they nest, and multiply. A backslash makes a bracket a character. BREAK fills up
the text encoder's input, and what follows begins another. As there, a bracket that is never closed reaches to the end,
and one that was never opened is a character. Prompts that change from step to step are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

from darkroom_plugins import hookimpl
from darkroom_plugins.contract import Assets, Conditioner
from darkroom_plugins.request import Request
from darkroom_plugins.sample import PromptPiece

darkroom_api_version = 1

TOKEN = re.compile(
    r"""
      \\ (?P<escaped> [()\[\]\\]? )  # the backslash itself is dropped, whatever follows
    | (?P<opening> [(\[] )
    | (?P<closing> (?: : \s* (?P<factor> [+-]? (?: \d+ (?:\.\d*)? | \.\d+ ) ) \s* )? \) | \] )
    | [^\\()\[\]:]+ | :
    """,
    re.VERBOSE,
)
BREAK = re.compile(r"\bBREAK\b")
FACTORS = {"(": 1.1, "[": 1 / 1.1}
OPENING = {")": "(", "]": "["}


class PromptWeighting(Conditioner):
    """Reads weighted prompts. What a weight does, see `clip.emphasised`."""

    name = "prompt-weighting"
    description = "Weights in prompts, as (word:1.3), and prompts of any length."

    def wants(self, request: Request, parameters: None) -> bool:
        return request.prompt_syntax == "weighted"

    def read_prompt(
        self, pieces: tuple[PromptPiece, ...], request: Request, assets: Assets, parameters: None
    ) -> tuple[PromptPiece, ...]:
        return tuple(part for piece in pieces for part in _read(piece))


def _read(piece: PromptPiece) -> Iterator[PromptPiece]:
    if piece.embedding is not None:
        yield piece
        return
    new_chunk = piece.new_chunk
    for text, weight in parse(piece.text):
        for part in BREAK.split(text):
            yield replace(piece, text=part, weight=piece.weight * weight, new_chunk=new_chunk)
            new_chunk = True
        new_chunk = False


def parse(prompt: str) -> list[tuple[str, float]]:
    """The texts of a prompt with their weights, each as long as its weight goes; at least one."""
    parts = [(text, weight) for text, weight in _weighted(prompt) if text]
    runs = groupby(parts, key=itemgetter(1))
    return [("".join(text for text, _ in run), weight) for weight, run in runs] or [("", 1.0)]


def _weighted(prompt: str) -> Iterator[tuple[str, float]]:
    """Each token of text with its weight: the product of the factors of all brackets around it."""
    tokens = list(TOKEN.finditer(prompt))
    factors = _factors(tokens)
    weights = {bracket: [1.0] for bracket in FACTORS}  # each kind's product, for each of those that are open
    for token in tokens:
        if bracket := token["opening"]:
            weights[bracket].append(weights[bracket][-1] * factors[token.start()])
        elif (closing := token["closing"]) and len(weights[OPENING[closing[-1]]]) > 1:
            weights[OPENING[closing[-1]]].pop()
        else:
            text = token[0] if token["escaped"] is None else token["escaped"]
            yield text, weights["("][-1] * weights["["][-1]


def _factors(tokens: Sequence[re.Match[str]]) -> dict[int, float]:
    """The factor of each bracket that opens, by its place; which the one that closes it may say."""
    factors = {}
    opened: dict[str, list[int]] = {bracket: [] for bracket in FACTORS}
    for token in tokens:
        if bracket := token["opening"]:
            opened[bracket].append(token.start())
            factors[token.start()] = FACTORS[bracket]
        elif (closing := token["closing"]) and opened[OPENING[closing[-1]]]:
            start = opened[OPENING[closing[-1]]].pop()
            if token["factor"]:
                factors[start] = float(token["factor"])
    return factors


@hookimpl
def darkroom_conditioners() -> Sequence[Conditioner]:
    return [PromptWeighting()]
