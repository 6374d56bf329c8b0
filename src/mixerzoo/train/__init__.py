"""Training: recipes, the loop, its checkpoints."""

from mixerzoo.train.data import Data, DataName
from mixerzoo.train.options import RunOptions
from mixerzoo.train.recipe import Recipe, get_recipe, list_recipes
from mixerzoo.train.run import fit, train

__all__ = ["Data", "DataName", "Recipe", "RunOptions", "fit", "get_recipe", "list_recipes", "train"]
