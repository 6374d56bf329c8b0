"""Training: recipes, the loop, its checkpoints."""

from mixerzoo.train.loop import Data
from mixerzoo.train.options import RunOptions
from mixerzoo.train.recipe import Recipe, get_recipe, list_recipes
from mixerzoo.train.run import fit, train

__all__ = ["Data", "Recipe", "RunOptions", "fit", "get_recipe", "list_recipes", "train"]
