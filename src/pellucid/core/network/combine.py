"""Several layer rules in one name: "csc+deconv" is what "deconv" makes of the network that "csc" has made."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pellucid.core.errors import InputError
from pellucid.core.registry import made

if TYPE_CHECKING:
    from pellucid.core.network.rules import Rule

PLUS = "+"
PLAIN = "plain"  # the rule that changes nothing


class Chain:
    """Rules to apply one after the other, each to the network that those before it have left (`swap.swap`)."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)


class Combination:
    """The function from options to the `Chain` of several rules.

    An option keeps its name if a single one of the rules has it. An option that several have is asked for with the
    name of its rule in front, dashes as underscores: `csc_published`, `deconv_published`.

    Args:
        factories: functions from options to a rule, by the rule's name, in the order in which they are applied.

    Attributes:
        options: name of each option -> (name of the rule, the rule's own name of the option).
    """

    def __init__(self, factories: Mapping[str, Callable[..., Rule]]) -> None:
        self.factories = dict(factories)
        own = {rule: inspect.signature(factory).parameters for rule, factory in factories.items()}
        self._count = Counter(name for names in own.values() for name in names)
        self.options: dict[str, tuple[str, str]] = {}
        parameters = []
        for rule, taken in own.items():
            for name, parameter in taken.items():
                full = self._full(rule, name)
                self.options[full] = (rule, name)
                parameters.append(parameter.replace(name=full, kind=inspect.Parameter.KEYWORD_ONLY))
        self.__signature__ = inspect.Signature(parameters)

    def __call__(self, **options: Any) -> Chain:
        """The rules, with these options.

        Raises:
            InputError: what one of the rules refuses.
        """
        tables = self.split(options)
        return Chain([made(f"layers {rule!r}", make, tables[rule]) for rule, make in self.factories.items()])

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse an option that does not say which rule it is for.

        Raises:
            InputError: several of the rules have it.
        """
        for name in options:
            if self._count[name] > 1:
                full = [key for key, (_, own) in self.options.items() if own == name]
                rules = [self.options[key][0] for key in full]
                raise InputError(f"{' and '.join(rules)} both have an option {name!r}: give {' or '.join(full)}.")

    def split(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The options of each rule, by their own names."""
        tables: dict[str, dict[str, Any]] = {rule: {} for rule in self.factories}
        for name, value in options.items():
            rule, own = self.options[name]
            tables[rule][own] = value
        return tables

    def join(self, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The reverse of `split`."""
        return {self._full(rule, name): value for rule, table in tables.items() for name, value in table.items()}

    def _full(self, rule: str, name: str) -> str:
        return name if self._count[name] < 2 else f"{rule.replace('-', '_')}_{name}"


def check_names(names: Sequence[str], includes: Mapping[str, Sequence[str]]) -> None:
    """Refuse names of rules that make no sense together.

    Args:
        names: of the rules, in their order.
        includes: name of a rule -> names of those that do a part of what it does.

    Raises:
        InputError: a name is missing or comes twice, `plain` is among them, or one includes another.
    """
    whole = PLUS.join(names)
    if not all(names):
        raise InputError(f"Layers {whole!r} lack a name beside a plus sign: write one rule, or RULE+RULE.")
    rest = [name for name in dict.fromkeys(names) if name != PLAIN]
    if len(rest) < len(names):
        twice = next((name for name in rest if names.count(name) > 1), PLAIN)
        why = "'plain' changes nothing" if twice == PLAIN else f"{twice!r} is named twice"
        raise InputError(f"Layers {whole!r}: {why}, so write {PLUS.join(rest) or PLAIN!r}.")
    for outer in names:
        for inner in includes.get(outer, ()):
            if inner in names:
                fewer = PLUS.join(name for name in names if name != inner)
                raise InputError(f"Layers {whole!r}: {outer!r} does what {inner!r} does too, so write {fewer!r}.")
