"""fusion: train small heads on cached activations of a frozen speech model, and use them.

    >>> run = fusion.fit(fusion.read_recipe("recipe.toml"))       # what `fusion train recipe.toml` does
    >>> run = fusion.Run.open("runs/hff")
    >>> run.metrics()["wer"], run.evaluate("dev").metrics["wer"]
    >>> run.transcribe([features])                                # float32 (frames, taps, channels)
    >>> fuser = fusion.build_fuser("hff", taps=8, channels=512)

Nothing here loads the frozen model or reads audio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.comparison import compare
    from fusion.modules import build_decoder, build_fuser
    from fusion.recipe import Recipe
    from fusion.recipe import read as read_recipe
    from fusion.run import Run
    from fusion.train import fit

__all__ = ["Recipe", "Run", "build_decoder", "build_fuser", "compare", "fit", "read_recipe"]

_HOMES = {
    "Recipe": ("fusion.recipe", "Recipe"),
    "Run": ("fusion.run", "Run"),
    "build_decoder": ("fusion.modules", "build_decoder"),
    "build_fuser": ("fusion.modules", "build_fuser"),
    "compare": ("fusion.comparison", "compare"),
    "fit": ("fusion.train", "fit"),
    "read_recipe": ("fusion.recipe", "read"),
}


# To a type checker a module with `__getattr__` has every name, and `fusion.ftt` would pass.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'fusion' has no attribute {name!r}")
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
