"""The former location of ``minrnn_lightning.commands.main``, for programs that import it from here."""

from minrnn_lightning.commands.main import find_recipes, main, recipes_folder

__all__ = ["find_recipes", "main", "recipes_folder"]
