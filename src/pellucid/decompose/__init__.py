"""Decomposing the Deep (Badola, Roy, Padmanabhan, Lal 2021, arXiv:2112.07719): the few filters that decide each class.

`pellucid.decompose(model, data)` finds them: this package, when called, is `select.decompose`. `evidence` makes one
pass over images and scores filters, `select` chooses sets, `head` is the linear layer that sees nothing else.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A folder and the function at its front door have one name here; so the folder can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from pellucid.decompose.select import decompose

        return decompose(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
