"""Imports inside the package run one way: a module uses what stands below it, or beside it, and nothing above."""

import ast
from pathlib import Path

import pytest

import fastwave

# From the bottom up; docs/design.md has the same order. A new module needs a place here.
LEVELS = [
    {"_cpu", "_cuda"},
    {"ops"},
    {"audio", "emphasis", "checkpoint", "layers", "distributions", "flows", "losses", "discriminators", "noise"},
    {"models", "griffin_lim"},
    {"pack", "threads", "graphs"},
    {"conditioners"},
    {"runners"},
    {"vocoder"},
    {"converters"},
    {"evaluate", "train"},
    {"cli", "__main__"},
]
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}

PACKAGE = Path(fastwave.__path__[0])
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported_modules(path: Path, source: str) -> set[str]:
    """Top-level modules of the package that a file (path inside the package) imports, wherever in it that happens.

    "" stands for the package itself: a name that only its __init__ has.
    """
    package = ["fastwave", *path.parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names += [".".join([*base, alias.name]) for alias in node.names]
    parts = [[*name.split("."), ""] for name in names]
    return {module if module in LEVEL else "" for top, module, *_ in parts if top == "fastwave"}


def upward_edges(path: Path, source: str) -> list[str]:
    own = path.parts[0].removesuffix(".py")
    return sorted(
        f"{own} imports {module or 'the package itself'}"
        for module in imported_modules(path, source)
        if not module or LEVEL[module] > LEVEL[own]
    )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_one_way(path):
    own = path.parts[0].removesuffix(".py")
    if own == "__init__":
        return  # the public names: it may import everything
    assert own in LEVEL, f"{own} has no place in the import order"
    assert upward_edges(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path, source, expected",
    [
        ("layers.py", "import torch\nfrom .ops import gated_stack\nfrom . import distributions", []),
        ("models/wavenet.py", "from ..layers import Conv\nfrom .base import Model\nfrom .. import audio", []),
        ("ops/upsample.py", "from fastwave import _cpu, layers", ["ops imports layers"]),
        ("models/wavenet.py", "from ..vocoder import Vocoder", ["models imports vocoder"]),
        ("models/__init__.py", "def f():\n    from .. import pack", ["models imports pack"]),
        ("audio.py", "import fastwave.cli", ["audio imports cli"]),
        ("pack.py", "import fastwave", ["pack imports the package itself"]),
        ("vocoder.py", "from fastwave import load", ["vocoder imports the package itself"]),
    ],
)
def test_upward_edges(path, source, expected):
    assert upward_edges(Path(path), source) == expected
