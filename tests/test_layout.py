"""The house rules that can be checked by reading imports."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import pellucid
from pellucid.core.registry import place
from pellucid.ideas import COMMANDS

PACKAGE = Path(pellucid.__file__).parent
IDEAS = {
    "whiten", "sparse", "edgepopup", "classfilters", "inversion", "distillation", "robust", "views", "search", "audit",
    "keras",
}  # fmt: skip
MAY_IMPORT = {
    "distillation": {"inversion"},
    "views": {"sparse", "inversion"},
    "robust": {"sparse"},
    "audit": IDEAS,
    "keras": set(),
}
LIGHT = ["__init__.py", "cli.py", "ideas.py", "core/errors.py", "core/flags.py", "core/registry.py"]
LIGHT += ["core/ranges.py", "core/train/settings.py", "inversion/flags.py"]
LIGHT += [str(file.relative_to(PACKAGE)) for file in PACKAGE.glob("commandline/*.py")]
LIGHT += [str(file.relative_to(PACKAGE)) for file in PACKAGE.glob("*/commands.py")]
LIGHT += [str(file.relative_to(PACKAGE)) for file in PACKAGE.glob("*/commands/*.py")]


def imported(file: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports, relative ones resolved; with `top_level_only`, at import time."""
    package = ("pellucid", *file.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    stack: list[ast.AST] = [ast.parse(file.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found.update({module, *(f"{module}.{alias.name}" for alias in node.names)})
        in_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and top_level_only
        if in_function or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            continue
        stack.extend(ast.iter_child_nodes(node))
    return found


def rooms(names: set[str]) -> set[str]:
    """The folders of the package among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("pellucid.")} & (IDEAS | {"core"})


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_arrows_point_down(file):
    room = file.relative_to(PACKAGE).parts[0]
    if room == "core":
        assert rooms(imported(file)) <= {"core"}, "core imports no idea"
    elif room == "keras":
        assert rooms(imported(file)) <= {"keras"}, "keras imports nothing of torch's side"
    elif room in IDEAS:
        assert rooms(imported(file)) <= {"core", room} | MAY_IMPORT.get(room, set())


def test_the_arrow_check_sees_relative_and_nested_imports(tmp_path):
    file = PACKAGE / "core" / "imaginary.py"
    source = "def f():\n    from ..whiten.layers import X\n    from . import data\n"
    assert rooms({*_of(source, file)}) == {"whiten", "core"}


def _of(source: str, file: Path) -> set[str]:
    class Fake(type(file)):
        def read_text(self, *a, **k):
            return source

    return imported(Fake(file))


@pytest.mark.parametrize("name", LIGHT)
def test_light_files_import_nothing_heavy(name):
    heavy = {"torch", "numpy", "PIL", "matplotlib", "sklearn", "lightning_fabric", "torchmetrics", "rich", "jinja2"}
    assert not heavy & {dotted.split(".")[0] for dotted in imported(PACKAGE / name, top_level_only=True)}


@pytest.mark.parametrize("words", [[], ["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_does_not_load_torch(words):
    code = (
        "import sys; from pellucid.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: pellucid" in done.stdout


def test_every_public_name_is_there():
    for name in pellucid.__all__:
        assert getattr(pellucid, name) is not None
        assert name == "__version__" or getattr(pellucid, name).__doc__
    assert set(pellucid.__all__) <= set(dir(pellucid))
    with pytest.raises(AttributeError, match="nope"):
        pellucid.nope  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_computes_has_the_common_flags(name):
    function = place(COMMANDS[name])
    flags = set(inspect.signature(function).parameters)
    for kind in typing.get_type_hints(function).values():
        if dataclasses.is_dataclass(kind):
            flags |= {field.name for field in dataclasses.fields(kind)}
    wanted = {"json", "quiet"} if name == "search" else {"json", "quiet", "seed", "device", "batch_size"}
    assert wanted <= flags


def test_what_the_readme_links_to_is_there():
    root = PACKAGE.parents[1]
    for page in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"
