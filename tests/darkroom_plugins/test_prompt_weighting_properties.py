"""Laws of weighted prompts: nothing is lost, weights multiply, escapes hold, and any text takes linear time."""

import itertools
import re
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_plugins.builtin.conditioners.prompt_weighting import TOKEN, parse

SYNTAX = r"()[]\:"
UP, DOWN = 1.1, 1 / 1.1
ANY_TEXT = st.text() | st.text(st.sampled_from(SYNTAX + "ab1. -"))
PLAIN = st.text(st.characters(exclude_characters=SYNTAX))
# Without digits, which after a colon would be a factor.
UNWEIGHTED = st.text(st.characters(exclude_categories=["Cs", "Nd"]) | st.sampled_from(SYNTAX), max_size=8)
FACTORS = st.floats(0.1, 4.0, allow_subnormal=False).map(lambda factor: round(factor, 3))


def escaped(text: str) -> str:
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    brackets = st.builds("({})".format, inner) | st.builds("[{}]".format, inner)
    weighted = st.builds("({}:{})".format, inner, FACTORS)
    return brackets | weighted | st.lists(inner, max_size=3).map("".join)


BALANCED = st.recursive(UNWEIGHTED.map(escaped), nested, max_leaves=8)


def characters(prompt: str, factor: float = 1.0) -> list[tuple[str, Any]]:
    """Each character of a prompt with its weight, times a factor."""
    return [(each, pytest.approx(weight * factor)) for text, weight in parse(prompt) for each in text]


@given(PLAIN)
def test_text_without_syntax_is_one_text(text: str) -> None:
    assert parse(text) == [(text, 1.0)]


@given(st.text())
def test_escaped_text_comes_back(text: str) -> None:
    assert parse(escaped(text)) == [(text, 1.0)]


@given(UNWEIGHTED, FACTORS)
def test_escaped_text_comes_back_from_brackets(text: str, factor: float) -> None:
    for prompt, weight in ((f"({escaped(text)}:{factor})", factor), (f"[{escaped(text)}]", DOWN)):
        assert parse(prompt) == ([(text, weight)] if text else [("", 1.0)])


@given(ANY_TEXT)
def test_only_syntax_is_lost(prompt: str) -> None:
    """Brackets, backslashes, and factors with their spaces."""
    pieces = parse(prompt)
    kept = "".join(text for text, _ in pieces)
    left = iter(prompt)
    assert all(character in left for character in kept)  # in this order
    lost = sorted(prompt)
    for character in kept:
        lost.remove(character)
    assert all(each in r"()[]\:.+-" or each.isspace() or each.isdecimal() for each in lost)


@given(ANY_TEXT)
def test_pieces_are_as_long_as_their_weights_go(prompt: str) -> None:
    pieces = parse(prompt)
    assert pieces == [("", 1.0)] or all(text for text, _ in pieces)
    assert all(one != other for (_, one), (_, other) in itertools.pairwise(pieces))


@given(BALANCED, FACTORS)
def test_brackets_multiply_all_weights_within(prompt: str, factor: float) -> None:
    assert characters(f"({prompt}:{factor})") == characters(prompt, factor)
    assert characters(f"({prompt})") == characters(prompt, UP)
    assert characters(f"[{prompt}]") == characters(prompt, DOWN)


@given(BALANCED, BALANCED)
def test_weights_do_not_reach_beyond_their_brackets(one: str, other: str) -> None:
    assert characters(one + other) == characters(one) + characters(other)


@given(st.lists(FACTORS, max_size=12), UNWEIGHTED)
def test_weights_multiply_with_nesting(factors: list[float], text: str) -> None:
    product, prompt = 1.0, escaped(text)
    for factor in factors:
        product, prompt = product * factor, f"({prompt}:{factor})"
    assert characters(prompt) == [(each, pytest.approx(product)) for each in text]


# ---------------------------------------------------------------------------------------------------------- linear time


def executed(prompt: str) -> int:
    """How many lines of Python a prompt takes."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse(prompt)
    finally:
        sys.settrace(before)
    return lines


@given(st.text(st.sampled_from(SYNTAX + "a1. "), min_size=1, max_size=6))
def test_twice_the_text_takes_twice_the_work(unit: str) -> None:
    short, long = executed(unit * 20), executed(unit * 40)
    assert long <= 2 * short


LONG = [(":", " "), (":", "1"), (":1", " "), (":1.", "1"), *(("", unit) for unit in (": ", ":1", ":1 ", ":1.", "(:1"))]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("start", "unit"), LONG)
def test_the_pattern_takes_linear_time(start: str, unit: str) -> None:
    """At this length a pattern that takes quadratic time runs for minutes, into the timeout."""
    prompt = start + unit * 400_000
    assert sum(len(token[0]) for token in TOKEN.finditer(prompt)) == len(prompt)
