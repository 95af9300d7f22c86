"""How the house is built: no circle, rooms in order, short files, nothing that only an installed package knows."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import pellucid
from pellucid import ideas

PACKAGE = Path(pellucid.__file__).parent
ROOMS = ("files", "data", "network", "measure", "train")  # of core; each may import itself and those before it
LONGEST, MEDIAN = 400, 130


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


FILES = modules()


def imports(name: str, known: dict[str, Path] | None = None, source: str | None = None) -> set[str]:
    """Modules of the package that `name` imports anywhere, in functions too, but not for types alone."""
    known = FILES if known is None else known
    package = name.split(".") if known[name].name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    stack: list[ast.AST] = [ast.parse(known[name].read_text() if source is None else source)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            stack.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                found.add(f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module)
        stack.extend(ast.iter_child_nodes(node))
    # The front door names everything lazily; what imports it asks for the version or a public name.
    return {other for other in found if other in known} - {name, "pellucid"}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other: what is left when modules that import nothing left are taken away."""
    left = {name: set(others) for name, others in edges.items()}
    while True:
        ends = {name for name, others in left.items() if not others & left.keys()}
        starts = set(left) - {other for others in left.values() for other in others}
        if not ends | starts:
            break
        left = {name: others for name, others in left.items() if name not in ends | starts}
    groups: list[list[str]] = []
    for name in left:
        reached, stack = set(), [name]
        while stack:
            for other in left[stack.pop()] & left.keys():
                if other not in reached:
                    reached.add(other)
                    stack.append(other)
        if name in reached and not any(name in group for group in groups):
            groups.append(sorted(other for other in reached if other in left and name in _reach(left, other)))
    return groups


def _reach(edges: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    stack = [start]
    while stack:
        for other in edges.get(stack.pop(), set()) - reached:
            reached.add(other)
            stack.append(other)
    return reached


def test_no_import_goes_in_a_circle():
    assert circles({name: imports(name) for name in FILES}) == []


def test_the_check_sees_circles_through_functions_and_relative_imports():
    known = {name: Path(f"{name.replace('.', '/')}.py") for name in ("pellucid.a", "pellucid.b.c", "pellucid.d")}
    sources = {
        "pellucid.a": "def f():\n    from pellucid.b import c\n",
        "pellucid.b.c": "from ..d import x\n",
        "pellucid.d": "if TYPE_CHECKING:\n    from pellucid import b\nelse:\n    import pellucid.a\n",
    }
    edges = {name: imports(name, known, source) for name, source in sources.items()}
    assert edges == {"pellucid.a": {"pellucid.b.c"}, "pellucid.b.c": {"pellucid.d"}, "pellucid.d": {"pellucid.a"}}
    assert circles(edges) == [["pellucid.a", "pellucid.b.c", "pellucid.d"]]
    assert circles({"x": {"y"}, "y": {"z"}, "z": set()}) == []


def test_rooms_of_the_ground_import_lower_rooms_only():
    for name in FILES:
        parts = name.split(".")
        if parts[:2] != ["pellucid", "core"] or len(parts) < 3 or parts[2] not in ROOMS:
            continue
        others = {other.split(".")[2] for other in imports(name) if other.startswith("pellucid.core.")}
        higher = others & set(ROOMS[ROOMS.index(parts[2]) + 1 :])
        assert not higher, f"{name} imports the higher rooms {sorted(higher)}"


def test_files_are_short():
    lengths = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
    assert statistics.median(length for length in lengths.values() if length) <= MEDIAN


TABLES = {
    "LAYERS": "pellucid.core.network.rules:RULES",
    "OBJECTIVES": "pellucid.core.train.objective:OBJECTIVES",
    "ENCODINGS": "pellucid.core.network.checkpoint:ENCODINGS",
    "FRAMEWORKS": "pellucid.core.train.frameworks:FRAMEWORKS",
}


def test_a_tree_that_is_not_installed_knows_everything(tmp_path):
    """Nothing of ours is found through the metadata of an installed package."""
    code = f"""
import importlib.metadata, json
importlib.metadata.entry_points = lambda **_: ()
from pellucid import ideas
from pellucid.core.registry import place
for table, where in {TABLES!r}.items():
    registry, own = place(where), getattr(ideas, table)
    assert registry.names() == sorted(own), table
    assert all(name == "keras" or callable(registry[name]) for name in own), table
from pellucid.audit.registry import CARDS
assert all(callable(cards[name]) for cards in CARDS.values() for name in cards.names())
print(json.dumps({{scope: cards.names() for scope, cards in CARDS.items()}}))
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cards = json.loads(done.stdout)
    assert {"accuracy", "whitening", "sparse", "subnet", "filters", "inverted"} <= set(cards["model"])
    assert {"answers", "examples", "filters"} <= set(cards["class"])


@pytest.mark.parametrize("name", ["decompose", "invert", "distill", "subnet"])
def test_a_verb_shows_its_arguments(name):
    function = getattr(pellucid, name)
    assert inspect.isfunction(function)
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    named = [kind for kind in kinds if kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)]
    assert len(named) >= 3
    assert "Args:" in (function.__doc__ or "")


def test_no_module_is_made_callable():
    for name in FILES:
        if name.startswith("pellucid.keras") or name == "pellucid.__main__":
            continue  # needs an extra; a script
        assert not callable(importlib.import_module(name)), name
    for file in FILES.values():
        assert "__class__ = " not in file.read_text().replace("plain.__class__ = ", ""), file


def private_of_others(source: str) -> list[str]:
    """`name._attribute` and `from x import _attribute` where `name` or `x` is another library's module or object."""
    tree = ast.parse(source)
    foreign: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if not alias.name.startswith("pellucid"):
                    foreign[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("pellucid"):
            for alias in node.names:
                foreign[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    found.append(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in foreign:
                found.append(ast.unparse(node))
    return found


# torch has no public name for "any convolution" and "any batch norm", nor for the tables that a module keeps.
ADMITTED = {
    "nn.modules.conv._ConvNd",
    "nn.modules.conv._ConvTransposeNd",
    "nn.modules.batchnorm._BatchNorm",
    "torch.nn.modules.conv._ConvNd",
    "os._exit",  # documented, in spite of its name
    # The reader of pickles in pure Python: the one in C allocates whatever a file claims to hold.
    "pickle._Unpickler",
}


def test_no_private_name_of_another_library():
    for name, file in FILES.items():
        found = set(private_of_others(file.read_text())) - ADMITTED
        found = {what for what in found if not what.startswith("pickle._Unpickler.")}
        assert not found, f"{name}: {sorted(found)}"


def test_the_check_sees_private_names():
    assert private_of_others("from torch import nn, _C\nnn.modules._x\nself._y\n") == ["torch._C", "nn.modules._x"]


def test_every_idea_of_the_tables_is_there():
    from pellucid.core.registry import place

    for table in TABLES:
        for name, where in getattr(ideas, table).items():
            if name != "keras":
                assert callable(place(where)), where
