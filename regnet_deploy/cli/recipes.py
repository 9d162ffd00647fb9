"""``regnet-deploy recipes``: lists the training recipes, or prints one as YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from regnet_deploy.cli.options import json_option
from regnet_deploy.cli.output import print_json, print_message, print_table

if TYPE_CHECKING:
    from regnet_deploy.training.recipe_file import NamedRecipe


@click.command()
@click.argument("name", metavar="[RECIPE]", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the training recipes, or print RECIPE (a name or a file) as YAML that can be edited for `train`.

    A file is checked, and all that is wrong with it is said.

    \b
    Example:
      regnet-deploy recipes
      regnet-deploy recipes fast > my-recipe.yaml
      regnet-deploy train --recipe my-recipe.yaml --data my-images
    """
    from regnet_deploy.training.recipe_file import load_recipe, shipped_recipes

    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            print_json(_data(recipe))
        else:
            click.echo(recipe.text, nl=not recipe.text.endswith("\n"))
        return
    recipes = shipped_recipes()
    if as_json:
        print_json([_data(recipe) for recipe in recipes])
        return
    rows = [(recipe.name, _epochs(recipe), recipe.summary) for recipe in recipes]
    print_table("", ("recipe", "epochs", "what it is"), rows, left=3)
    print_message("`regnet-deploy recipes NAME > my.yaml` writes one to edit; `train --recipe NAME` or my.yaml uses it")


def _epochs(recipe: NamedRecipe) -> str:
    return "by rule" if recipe.rule else str(recipe.values["epochs"])


def _data(recipe: NamedRecipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "description": recipe.description,
        "source": recipe.source,
        "measured": recipe.measured,
        "rule": recipe.rule,
        "values": dict(recipe.values),
    }
