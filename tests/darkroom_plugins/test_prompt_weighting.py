"""Weighted prompts are read as AUTOMATIC1111's web UI reads them."""

import itertools
import math
import random
import re
from typing import Any, TypeAlias

import pytest

from darkroom_plugins.builtin.conditioners.prompt_weighting import PromptWeighting, parse
from darkroom_plugins.sample import PromptPiece
from tests.prompting import ListedEmbeddings, a_request

UP, DOWN = 1.1, 1 / 1.1

# Worked out by hand from the web UI's wiki, "Attention/emphasis".
CASES: dict[str, list[tuple[str, float]]] = {
    "a word": [("a word", 1.0)],
    "a (word)": [("a ", 1.0), ("word", UP)],
    "a ((word))": [("a ", 1.0), ("word", UP * UP)],
    "a [word] b": [("a ", 1.0), ("word", DOWN), (" b", 1.0)],
    "a (word:1.5)": [("a ", 1.0), ("word", 1.5)],
    "a (word:0.25)": [("a ", 1.0), ("word", 0.25)],
    "(a (b) c:2)": [("a ", 2.0), ("b", 2 * UP), (" c", 2.0)],
    "((a:2) b:3)": [("a", 6.0), (" b", 3.0)],
    "(a [b])": [("a ", UP), ("b", UP * DOWN)],
    "(a) (b)": [("a", UP), (" ", 1.0), ("b", UP)],
    "(a)(b)": [("ab", UP)],
    "(a : 1.3 )": [("a ", 1.3)],
    "(a:.5)(b:2.)(c:-1)": [("a", 0.5), ("b", 2.0), ("c", -1.0)],
    "(a:b:2)": [("a:b", 2.0)],
    "a:b (c:d)": [("a:b ", 1.0), ("c:d", UP)],
    "[a:2]": [("a:2", DOWN)],
    r"anime_\(character\) \[x\]": [("anime_(character) [x]", 1.0)],
    r"(a \) b:2)": [("a ) b", 2.0)],
    r"a \\ (b)": [("a \\ ", 1.0), ("b", UP)],
    r"a \b": [("a b", 1.0)],
    "a\\": [("a", 1.0)],
    # Never closed, never opened, one over the other.
    "a (b c": [("a ", 1.0), ("b c", UP)],
    "a ((b c": [("a ", 1.0), ("b c", UP * UP)],
    "a) b] c:1.2)": [("a) b] c:1.2)", 1.0)],
    "(a))": [("a", UP), (")", 1.0)],
    "[a (b] c:2)": [("a ", DOWN), ("b", 2 * DOWN), (" c", 2.0)],
    "": [("", 1.0)],
    "()": [("", 1.0)],
    "(a:1.5.2)": [("a:1.5.2", UP)],
}


@pytest.mark.parametrize("prompt", CASES)
def test_reads_as_the_web_ui(prompt: str) -> None:
    assert parse(prompt) == [(text, pytest.approx(weight)) for text, weight in CASES[prompt]]


Tree: TypeAlias = "list[str | tuple[str, float | None, Tree]]"  # texts and brackets: their kind, factor and content


def tree(rng: random.Random, depth: int = 4) -> Tree:
    def node() -> Any:
        if depth == 0 or rng.random() < 0.5:
            return "".join(rng.choices("ab ,()[]\\é\n", k=rng.randrange(4)))
        kind = rng.choice("([")
        factor = rng.choice([None, 0.5, 1.25, 3.0]) if kind == "(" else None
        return kind, factor, tree(rng, depth - 1)

    return [node() for _ in range(rng.randrange(5))]


def written(nodes: Tree) -> str:
    def write(node: Any) -> str:
        if isinstance(node, str):
            return re.sub(r"([()\[\]\\])", r"\\\1", node)
        kind, factor, content = node
        return f"{kind}{written(content)}{f':{factor}' if factor else ''}{')' if kind == '(' else ']'}"

    return "".join(map(write, nodes))


def meant(nodes: Tree, weight: float = 1.0) -> list[tuple[str, float]]:
    """Each character with its weight."""
    found: list[tuple[str, float]] = []
    for node in nodes:
        if isinstance(node, str):
            found += [(character, weight) for character in node]
        else:
            kind, factor, content = node
            found += meant(content, weight * (factor or (UP if kind == "(" else DOWN)))
    return found


def characters(prompt: str) -> list[tuple[str, float]]:
    return [(character, weight) for text, weight in parse(prompt) for character in text]


@pytest.mark.parametrize("seed", range(200))
def test_reads_what_was_written(seed: int) -> None:
    nodes = tree(random.Random(seed))
    assert characters(written(nodes)) == [(text, pytest.approx(weight)) for text, weight in meant(nodes)]


def test_the_trees_are_of_all_kinds() -> None:
    trees = [tree(random.Random(seed)) for seed in range(200)]
    weights = {round(weight, 6) for nodes in trees for _, weight in meant(nodes)}
    assert len(weights) > 30
    assert sum(written(nodes) != "".join(text for text, _ in meant(nodes)) for nodes in trees) > 100


@pytest.mark.parametrize("seed", range(200))
def test_any_text_is_read(seed: int) -> None:
    """Nothing raises; nothing is lost but brackets, factors and backslashes; neighbours have other weights."""
    rng = random.Random(seed)
    prompt = "".join(rng.choices(r"ab ()[]\:1.-", k=rng.randrange(40)))
    pieces = parse(prompt)
    text = "".join(text for text, _ in pieces)
    assert re.sub(r"[^ab]", "", text) == re.sub(r"[^ab]", "", prompt)
    assert pieces
    assert all(text for text, _ in pieces) or pieces == [("", 1.0)]
    assert all(one[1] != other[1] for one, other in itertools.pairwise(pieces))


@pytest.mark.parametrize(
    "prompt", ["(a" * 5000, "(" * 3333 + "a)" * 3333, ": " * 5000, " " * 10_000, "(:" + "1" * 9998, "BREAK " * 1666]
)
@pytest.mark.timeout(20)
def test_long_prompts_are_read(prompt: str) -> None:
    """In linear time: the square of their length would take longer than a test may."""
    read(prompt)


def test_huge_weights_do_not_raise() -> None:
    assert parse("(a:" + "9" * 400 + ")") == [("a", math.inf)]


def read(*prompts: str | PromptPiece) -> list[tuple[str, float, bool]]:
    pieces = tuple(PromptPiece(each) if isinstance(each, str) else each for each in prompts)
    result = PromptWeighting().read_prompt(pieces, a_request(), ListedEmbeddings(), None)
    return [(piece.text.strip(), round(piece.weight, 6), piece.new_chunk) for piece in result]


def test_break_begins_a_chunk() -> None:
    assert read("a BREAK b") == [("a", 1, False), ("b", 1, True)]
    assert read("a (b BREAK c:2) d") == [("a", 1, False), ("b", 2, False), ("c", 2, True), ("d", 1, False)]
    assert read("a BREAK (b)") == [("a", 1, False), ("", 1, True), ("b", 1.1, False)]
    assert read("BREAKFAST, break") == [("BREAKFAST, break", 1, False)]


def test_goes_on_from_other_conditioners() -> None:
    learned = PromptPiece("<cat>", embedding=object(), new_chunk=True)
    assert PromptWeighting().read_prompt((learned,), a_request(), ListedEmbeddings(), None) == (learned,)
    assert read(PromptPiece("a (b)", weight=2.0, new_chunk=True)) == [("a", 2, True), ("b", 2.2, False)]


def test_is_wanted_where_it_is_asked_for() -> None:
    plugin = PromptWeighting()
    assert plugin.wants(a_request(prompt_syntax="weighted"), None)
    assert not plugin.wants(a_request(prompt="(a:1.5)"), None)
