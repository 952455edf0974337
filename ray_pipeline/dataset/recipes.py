"""Which recipes an output holds, and what `recipe.json` tells of one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ray_pipeline.dataset.layout import Layout
from ray_pipeline.errors import NotFoundError, RecipeMismatchError, SettingsError
from ray_pipeline.store import Store


@dataclass(frozen=True, kw_only=True)
class StandingRecipe:
    """What a reader needs to know of one recipe of an output."""

    layout: Layout
    """Where its objects lie."""
    model: str
    """The model's name."""
    dim: int
    """Numbers per embedding."""
    partition_by: tuple[str, ...]
    """Columns of the slides table whose values are folders, in their order."""


def recipe_layouts(output: Store) -> list[Layout]:
    """One layout per recipe of the output. Raises NotFoundError when there is none."""
    names = [name for name in output.folders("_state") if name.startswith("recipe=")]
    if not names:
        raise NotFoundError(f"{output.uri} holds no historay output; check the URI.")
    return [Layout(name.removeprefix("recipe=")) for name in names]


def find_recipe(output: Store, asked: str | None) -> StandingRecipe:
    """The recipe of fingerprint `asked`, by one GET.

    For the beginning of one by a LIST too, as for None, the only one there is.

    Raises SettingsError when it is not there, or when there are several to choose from.
    """
    if asked is None:
        layouts = recipe_layouts(output)
        if len(layouts) > 1:
            raise SettingsError(
                f"{output.uri} holds {len(layouts)} recipes, and their vectors must not be mixed: "
                f"name one of {_named(output, layouts)} (--recipe)."
            )
        asked = layouts[0].recipe_fp
    layout = Layout(asked)
    standing = standing_recipe(output, layout)
    if standing is None:
        begun = [one for one in recipe_layouts(output) if one.recipe_fp.startswith(asked)]
        if len(begun) == 1:
            layout = begun[0]
            standing = standing_recipe(output, layout)
    if standing is None:
        raise SettingsError(
            f"recipe: {asked}: {output.uri} has no such recipe; there is "
            f"{_named(output, recipe_layouts(output))}."
        )
    return _told(output, layout, standing)


def layout_of(output: Store, recipe: str | None) -> Layout:
    """The layout of the recipe that `recipe` begins, or of the only one.

    Raises NotFoundError where there is no output; SettingsError where `recipe` is not one of its
    own, or it holds several and none is named: vectors of two recipes are never mixed.
    """
    folders = [name for name in output.folders("embeddings") if name.startswith("recipe=")]
    there = [name.removeprefix("recipe=") for name in folders]
    if not there:
        raise NotFoundError(f"{output.uri} holds no embeddings of historay; check the URI.")
    named = [name for name in there if name.startswith(recipe or "")]
    if len(named) == 1:
        return Layout(named[0])
    choice = ", ".join(there)
    if recipe is None:
        raise SettingsError(
            f"{output.uri} holds several recipes, {choice}; name one with --recipe."
        )
    raise SettingsError(f"--recipe: '{recipe}' is not one recipe of {output.uri}: {choice}.")


def standing_recipe(output: Store, layout: Layout) -> dict[str, Any] | None:
    """What stands in `recipe.json`; None when there is none.

    Raises RecipeMismatchError when it is damaged.
    """
    try:
        standing = json.loads(output.get(layout.recipe))
    except NotFoundError:
        return None
    except ValueError:
        standing = None
    if not isinstance(standing, dict):
        raise _damaged(output, layout)
    return standing


def _told(output: Store, layout: Layout, standing: dict[str, Any]) -> StandingRecipe:
    try:
        encoder = standing["recipe"]["encoder"]
        return StandingRecipe(
            layout=layout,
            model=str(encoder["model"]),
            dim=int(encoder["dim"]),
            partition_by=tuple(standing.get("partition_by", [])),
        )
    except (KeyError, TypeError, ValueError):
        raise _damaged(output, layout) from None


def _named(output: Store, layouts: list[Layout]) -> str:
    names = []
    for layout in layouts:
        standing = standing_recipe(output, layout)
        model = "unknown" if standing is None else _told(output, layout, standing).model
        names.append(f"{layout.recipe_fp} ({model})")
    return ", ".join(names)


def _damaged(output: Store, layout: Layout) -> RecipeMismatchError:
    return RecipeMismatchError(
        f"{output.uri_of(layout.recipe)} is damaged: delete it and run again, which writes it anew."
    )
