"""Recipes for --from. They have no input pictures, which the command must supply again."""

from typing import Any

from darkroom_client.cli._options import Source
from darkroom_client.cli._values import usage_error
from darkroom_client.recipes import Recipe, read_recipe

# By task:
_INPUT_OPTIONS = {"img2img": "", "inpaint": " --mask MASK", "outpaint": ""}  # for inputs beside the picture
_FIELDS = {"img2img": "image_to_image", "inpaint": "inpaint", "outpaint": "outpaint"}  # of EditRequest's oneof `edit`
_KEYWORDS = {"img2img": {"strength"}, "inpaint": {"strength", "mask"}, "outpaint": {"margins"}}  # that fit the task


def read(source: Source) -> Recipe | None:
    """The recipe of --from; None without --from.

    :raises DarkroomError: if the picture has no recipe.
    """
    if source.recipe_of is None:
        if source.no_controls:
            usage_error("--no-controls", "needs --from")
        return None
    recipe = read_recipe(source.recipe_of)
    if source.no_controls:
        recipe.parameters.ClearField("controls")
    return recipe


def check_generate(recipe: Recipe, source: Source, task: str | None) -> None:
    """Checks that `generate` can use the recipe: that of an edit needs a picture, unless --task overrides its task.

    :raises typer.BadParameter: if it cannot.
    """
    old = recipe.parameters.task
    if old in _INPUT_OPTIONS and task is None:
        again = f"darkroom edit IMAGE{_INPUT_OPTIONS[old]} --from {source.recipe_of}"
        usage_error("--from", f"{source.recipe_of} is an edit ({old}) of a picture that is not in its recipe: {again}")


def adapt_to_edit(recipe: Recipe, source: Source, edit_options: dict[str, Any], task: str | None) -> None:
    """Adapts the recipe and the keywords of `edit` to each other, in place.

    The recipe's edit supplies keywords that are None, if the others fit its task. The task then follows from the
    keywords. The size of a picture made from text is dropped, as the size follows from the picture to edit.

    :raises typer.BadParameter: if the recipe's edit needs a mask.
    """
    old, path = recipe.parameters.task, source.recipe_of
    recorded = dict(recipe.edit.get(_FIELDS.get(old, ""), {}))
    if old == "outpaint":
        recorded = {"margins": tuple(recorded.get(side, 0) for side in ("left", "top", "right", "bottom"))}
    given = {name for name in ("strength", "mask", "margins") if edit_options[name] is not None}
    if old == "inpaint" and not given and task is None:
        usage_error(
            "--from", f"{path} was made by {old}: it needs{_INPUT_OPTIONS[old]}, or --strength for another kind of edit"
        )
    if given <= _KEYWORDS.get(old, set()):
        edit_options |= {name: value for name, value in recorded.items() if edit_options[name] is None}
    if old in ("", "txt2img"):
        for field in ("width", "height", "hires_fix"):
            recipe.parameters.ClearField(field)
    if old == "txt2img" or old in _INPUT_OPTIONS:
        recipe.parameters.ClearField("task")
