"""Captions of scenes: one canonical caption each, and random paraphrases."""

import random

from .data import Scene, Thing

SPELLINGS = {
    "small": ("small", "small", "small", "tiny", "little"),
    "large": ("large", "large", "large", "big", "huge"),
    "gray": ("gray", "gray", "grey"),
    "left": ("at the left", "at the left", "on the left", "on the left side"),
    "right": ("at the right", "at the right", "on the right", "on the right side"),
    "top": ("at the top", "at the top", "at the top", "on top"),
    "bottom": ("at the bottom", "at the bottom", "at the bottom", "below"),
    "": ("", "", "", "", "in the middle", "in the center", "in the centre"),
    "left of": ("left of", "left of", "to the left of"),
    "above": ("above", "above", "over", "on top of"),
}
"""Other words for the same thing, repeated by how often they are used."""

OPENINGS = ("", "", "", "", "", "", "a picture of ", "an image of ", "a drawing of ", "a photo of ", "draw ")
BACKGROUNDS = (
    "on a {} background",
    "on a {} background",
    "on a {} background",
    "on {} background",
    "on {}",
    "with a {} background",
    "against a {} background",
    "in front of a {} background",
)

SILENT_BACKGROUNDS = 0.1
"""Share of sentences that leave the background open."""


def caption(scene: Scene) -> str:
    """The plain caption: "a small pink heart at the top on a cyan background"."""
    middle = f" at the {scene.position}" if scene.position else ""
    if scene.relation:
        middle = f" {scene.relation} {_noun(scene.things[1])}"
    return f"{_noun(scene.things[0])}{middle} on {_article(scene.background)} background"


def random_caption(scene: Scene, rng: random.Random) -> str:
    """The plain caption in half of all cases, else a paraphrase, sometimes without the background."""
    if rng.random() < 0.5:
        return caption(scene)
    text = _terse(scene, rng) if rng.random() < 0.3 else _sentence(scene, rng)
    return rng.choice((text, text, text.capitalize(), text + ".", text.capitalize() + "."))


def _sentence(scene: Scene, rng: random.Random) -> str:
    things = [_noun(_respelt(thing, rng)) for thing in scene.things]
    words = _arranged(scene, things, rng)
    if rng.random() < SILENT_BACKGROUNDS:
        return rng.choice(OPENINGS) + " ".join(words)
    where = rng.choice(BACKGROUNDS).format(_spelt(scene.background, rng)).replace("a orange", "an orange")
    return rng.choice(OPENINGS) + " ".join([*words, where])


def _terse(scene: Scene, rng: random.Random) -> str:
    """Without articles: "red circle, blue background"."""
    things = [" ".join(_words(_respelt(thing, rng))) for thing in scene.things]
    comma = rng.choice((",", ",", " on"))
    return " ".join(_arranged(scene, things, rng)) + f"{comma} {_spelt(scene.background, rng)} background"


def _arranged(scene: Scene, things: list[str], rng: random.Random) -> list[str]:
    if scene.relation:
        return [things[0], rng.choice(SPELLINGS[scene.relation]), things[1]]
    position = rng.choice(SPELLINGS[scene.position])
    return [things[0], position] if position else [things[0]]


def _respelt(thing: Thing, rng: random.Random) -> Thing:
    return Thing(_spelt(thing.colour, rng), thing.shape, _spelt(thing.size, rng) if thing.size else "")


def _spelt(word: str, rng: random.Random) -> str:
    return rng.choice(SPELLINGS.get(word, (word,)))


def _words(thing: Thing) -> list[str]:
    return [word for word in (thing.size, thing.colour, thing.shape) if word]


def _noun(thing: Thing) -> str:
    return _article(" ".join(_words(thing)))


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words
