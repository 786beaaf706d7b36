"""The recipes that ship: each is one that this version takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion import head, recipe
from pipelines.rivals import RECIPES as OF_TASKS

RECIPES = sorted(OF_TASKS[0].parent.glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_resolves_and_has_a_folder_of_its_own(path: Path) -> None:
    resolved = head.resolve(recipe.read(path))
    assert resolved.name == path.stem
    assert recipe.parse(resolved.to_toml()) == resolved
