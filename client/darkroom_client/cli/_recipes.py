"""Recipes taken up by --from. The pictures that went into them are not in them, and must be given again."""

from typing import Any

from darkroom_client.cli._options import Source
from darkroom_client.cli._values import wrong
from darkroom_client.recipes import Recipe, read_recipe

_EDITS = {"img2img": "", "inpaint": " --mask MASK", "outpaint": ""}  # task: what else it needs
_FIELDS = {"img2img": "image_to_image", "inpaint": "inpaint", "outpaint": "outpaint"}  # task: EditRequest's field
_KINDS = {"img2img": {"strength"}, "inpaint": {"strength", "mask"}, "outpaint": {"margins"}}  # task: what says it


def read(source: Source) -> Recipe | None:
    """The recipe in the picture given; None where none is given.

    :raises DarkroomError: when there is no recipe in it.
    """
    if source.recipe_of is None:
        if source.no_controls:
            wrong("--no-controls", "needs --from")
        return None
    recipe = read_recipe(source.recipe_of)
    if source.no_controls:
        recipe.parameters.ClearField("controls")
    return recipe


def check_generate(recipe: Recipe, source: Source, task: str | None) -> None:
    """A recipe for a picture from text: not that of an edit, unless a task says so.

    :raises typer.BadParameter: when it needs a picture.
    """
    old = recipe.parameters.task
    if old in _EDITS and task is None:
        again = f"darkroom edit IMAGE{_EDITS[old]} --from {source.recipe_of}"
        wrong("--from", f"{source.recipe_of} is an edit ({old}) of a picture that is not in its recipe: {again}")


def fit_edit(recipe: Recipe, source: Source, change: dict[str, Any], task: str | None) -> None:
    """A recipe for an edit: what was done before is done again where `change` does not say otherwise, its task follows
    from the change, and the size of what was no edit from the picture.

    :raises typer.BadParameter: when it needs more than the picture.
    """
    old, path = recipe.parameters.task, source.recipe_of
    before = dict(recipe.edit.get(_FIELDS.get(old, ""), {}))
    if old == "outpaint":
        before = {"margins": tuple(before.get(side, 0) for side in ("left", "top", "right", "bottom"))}
    kinds = {name for name in ("strength", "mask", "margins") if change[name] is not None}
    if old == "inpaint" and not kinds and task is None:
        wrong("--from", f"{path} was made by {old}: it needs{_EDITS[old]}, or --strength for another kind of edit")
    if kinds <= _KINDS.get(old, set()):
        change |= {name: value for name, value in before.items() if change[name] is None}
    if old in ("", "txt2img"):
        recipe.parameters.ClearField("width")
        recipe.parameters.ClearField("height")
    if old == "txt2img" or old in _EDITS:
        recipe.parameters.ClearField("task")
