"""Edge-popup (Ramanujan et al. 2020, arXiv:1911.13299): subnetworks of random weights, found by training scores.

`pellucid.subnet(model, keep=0.3)` masks any network: this package, when called, is `layers.subnet`. `mask` is the pure
maths, `draw` makes the random weights, `layers` puts both into layers, `rule` is `--layers subnet`, `store` writes a
subnetwork as a seed and one bit a weight, `plain` bakes it into an ordinary network.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

_HOME = {"save": "store", "bake": "plain", "masks": "layers"}  # public name -> file


class _Callable(ModuleType):
    """A folder and the function at its front door have one name here; so the folder can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from pellucid.subnet.layers import subnet

        return subnet(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pellucid.subnet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pellucid.subnet.{_HOME[name]}"), name)


sys.modules[__name__].__class__ = _Callable
