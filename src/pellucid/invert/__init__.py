"""Images out of a network alone: DeepInversion (Yin et al. 2020, arXiv:1912.08795) and what came of it.

`pellucid.invert(model, targets)` finds images that the network gives these classes and on which every layer's
statistics are those of its table: this package, when called, is `optimize.invert`. One small value says each part of
how: `objective`, `matching` (statistics), `priors`, `views`, `start`, `schedule`; `presets` puts them together.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid.invert.optimize import Inversion as Inversion
    from pellucid.invert.optimize import invert as invert
    from pellucid.invert.presets import Recipe as Recipe
    from pellucid.invert.presets import recipe as recipe
    from pellucid.invert.representation import reconstruct as reconstruct

_HOME = {
    "Inversion": "optimize",
    "invert": "optimize",
    "Recipe": "presets",
    "recipe": "presets",
    "reconstruct": "representation",
}


class _Callable(ModuleType):
    """A folder and the function at its front door have one name here; so the folder can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from pellucid.invert.optimize import invert

        return invert(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        import importlib

        if name not in _HOME:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{self.__name__}.{_HOME[name]}"), name)


sys.modules[__name__].__class__ = _Callable
