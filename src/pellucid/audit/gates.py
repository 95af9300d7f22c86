"""Gates: conditions on the numbers of `audit.json`, such as `accuracy.top1 >= 0.95`, for use in continuous integration.

A gate is a path, an operator and a number. The path walks `audit.json` by keys and list positions joined with dots
(`accuracy.top1`, `accuracy.interval.0`, `classes.cat.answers.accuracy`); keys that contain dots are found as well.
Nothing is evaluated as code.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pellucid.core.errors import InputError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_GATE = re.compile(
    r"(?P<path>\S(?:.*?[^\s=!<>~])?)\s*(?P<operator>>=|<=|==|>|<)\s*"
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<percent>%?)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Gate:
    """`path operator bound`; `str(gate)` parses back to the same gate."""

    path: str
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read `"accuracy.top1 >= 0.95"` or `"accuracy.top1 >= 95%"`.

        Raises:
            InputError: the text is not a path, one of `>= > <= < ==` and a finite number.
        """
        match = _GATE.fullmatch(text.strip())
        bound = float(match["number"]) / (100 if match["percent"] else 1) if match else math.nan
        if match is None or not math.isfinite(bound):
            raise InputError(
                f"The gate {text!r} is not understood: write a path, one of {' '.join(OPERATORS)} and a number, "
                "as in 'accuracy.top1 >= 0.95' or 'accuracy.top1 >= 95%'."
            )
        return cls(match["path"], match["operator"], bound)

    def __str__(self) -> str:
        return f"{self.path} {self.operator} {self.bound!r}"


@dataclass(frozen=True)
class GateResult:
    """A gate, the number found at its path, and whether the condition holds."""

    gate: Gate
    value: float
    passed: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "gate": str(self.gate),
            "path": self.gate.path,
            "operator": self.gate.operator,
            "bound": self.gate.bound,
            "value": self.value,
            "passed": self.passed,
        }


def check(gates: Iterable[Gate], audit_json: Any) -> list[GateResult]:
    """Check each gate against the content of `audit.json`, in the order given.

    Raises:
        InputError: a path leads nowhere (the nearest paths are named), or to something that is not a number.
    """
    return [
        GateResult(gate, value, OPERATORS[gate.operator](value, gate.bound))
        for gate in gates
        for value in [_number(gate, audit_json)]
    ]


def _number(gate: Gate, audit_json: Any) -> float:
    found = list(_walk(audit_json, gate.path))
    if not found:
        paths = [path for path, value in _leaves(audit_json) if _is_number(value)]
        nearest = difflib.get_close_matches(gate.path, paths, n=4, cutoff=0.3) or paths[:4]
        raise InputError(
            f"The gate '{gate}' names {gate.path!r}, which is not in the audit: the nearest are {', '.join(nearest)}."
        )
    if not _is_number(found[0]):
        kind = "has no value in this audit" if found[0] is None else "is not a single number"
        raise InputError(
            f"The gate '{gate}' cannot be checked, because {gate.path!r} {kind}: choose a path to a number."
        )
    return found[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _walk(node: Any, path: str) -> Iterator[Any]:
    """Every value that `path` can name below `node` (more than one only where keys contain dots)."""
    for key, child in _children(node):
        if path == key:
            yield child
        elif path.startswith(f"{key}."):
            yield from _walk(child, path[len(key) + 1 :])


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, child in _children(node):
        if isinstance(child, dict | list):
            yield from _leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list):
        yield from ((str(position), child) for position, child in enumerate(node))
