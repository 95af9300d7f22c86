"""Data sets out of networks, students out of data sets.

`synthesize` fills class folders with inverted images, `assess` says what they are worth, `pellucid.distill(teacher,
student, folder)` trains a student on them beside its controls: this package, when called, is `student.distill`.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A folder and the function at its front door have one name here; so the folder can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from pellucid.distill.student import distill

        return distill(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
