"""The rooms depend on each other in one direction, each owns its library, and none executes what it reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_MODULE = 300  # lines

# What each room may import from the others.
NEIGHBOURS: dict[str, set[str]] = {
    "probes": set(),
    "diagnostics": {"probes"},
    "reports": {"probes", "diagnostics"},
    "lab": {"probes", "diagnostics"},
    "facade": {"probes", "diagnostics", "reports", "lab"},
}
# Rooms that see of the probes only what was measured, never the instruments.
VALUES_ONLY = {"diagnostics", "reports"}
VALUES = {"anatomy", "errors", "recording", "schema"}
# Which rooms may use a library; one that is not listed here is free (numpy, the standard library).
OWNERS: dict[str, set[str]] = {
    "torch": {"probes", "lab"},
    "captum": {"probes"},
    "pyarrow": {"probes"},
    "pandas": {"diagnostics", "reports", "lab"},
    "plotly": {"reports"},
    "jinja2": {"reports"},
    "rich": {"reports"},
    "typer": {"facade"},
    "transformers": {"lab"},
    "lightning": {"probes"},
    "accelerate": {"probes"},
    "wandb": {"probes"},
    "mlflow": {"probes"},
    "tensorboard": {"probes", "lab"},  # what writes events, and what reads them
}
# Frames are values that probes hand out: they load when one is asked for. A trainer's library is there when a trainer is.
LAZY = {("probes", "pandas"), ("probes", "transformers")}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
UNSAFE_CALLS = {
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pandas.read_pickle",
    "pyarrow.deserialize",
    "eval",
    "exec",
}

MODULES = [(room, file) for room in NEIGHBOURS for file in sorted((ROOT / room).rglob("*.py"))]
NAMES = [file.relative_to(ROOT).as_posix() for _, file in MODULES]


@dataclass(frozen=True)
class Import:
    """One imported name, absolute; whether it is imported when the module is, and only for types."""

    name: str
    at_start: bool
    for_types: bool


def package_of(file: Path) -> str:
    """Return the dotted name of the package that ``file`` is in, as installed."""
    room, *below = file.relative_to(ROOT).parent.parts
    return ".".join(["rheoscope"] + ([] if room == "facade" else [room]) + below)


def imports(tree: ast.Module, package: str) -> list[Import]:
    """Return every import: lazy, relative, for types, and by ``import_module`` of a text."""
    return list(_imports(tree, package, at_start=True, for_types=False))


def _imports(node: ast.AST, package: str, *, at_start: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for name in _named(child, package):
            yield Import(name, at_start, for_types)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _imports(child, package, at_start=at_start and not inside, for_types=for_types or types)


def _named(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def rooms(found: list[Import]) -> set[str]:
    """Return the rooms that are imported, the door itself as facade."""
    named = {imported.name for imported in found if imported.name.split(".")[0] == "rheoscope"}
    return {parts[1] if (parts := name.split("."))[1:] and parts[1] in NEIGHBOURS else "facade" for name in named}


def trespasses(room: str, tree: ast.Module, package: str) -> list[str]:
    """Return what a module of ``room`` imports and may not."""
    found = imports(tree, package)
    wrong = sorted(rooms(found) - NEIGHBOURS[room] - {room})
    for imported in found:
        library = imported.name.split(".")[0]
        lazy = (room, library) in LAZY and (not imported.at_start or imported.for_types)
        if library in OWNERS and room not in OWNERS[library] and not lazy:
            wrong.append(imported.name)
        inside = imported.name.removeprefix("rheoscope.probes.").split(".")[0]
        if room in VALUES_ONLY and imported.name.startswith("rheoscope.probes") and inside not in VALUES:
            wrong.append(imported.name)
    return wrong


def unsafe(tree: ast.Module) -> list[str]:
    """Return what would execute or unpickle something that was read."""
    found = [i.name for i in imports(tree, "") if set(i.name.split(".")[:1]) & UNSAFE_MODULES]
    aliases = {
        (alias.asname or alias.name): name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias, name in zip(node.names, _named(node, ""), strict=True)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, *rest = ast.unparse(node.func).split(".")
            called = ".".join([aliases.get(head, head), *rest])
            pickled = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            if called in UNSAFE_CALLS or pickled:
                found.append(called)
    return found


@pytest.mark.parametrize(("room", "file"), MODULES, ids=NAMES)
def test_module_imports_only_what_its_room_may(room: str, file: Path) -> None:
    assert trespasses(room, ast.parse(file.read_text()), package_of(file)) == []


@pytest.mark.parametrize(("room", "file"), MODULES, ids=NAMES)
def test_module_is_short_and_says_what_it_is(room: str, file: Path) -> None:
    text = file.read_text()

    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= LONGEST_MODULE


@pytest.mark.parametrize(("room", "file"), MODULES, ids=NAMES)
def test_module_unpickles_and_executes_nothing(room: str, file: Path) -> None:
    assert unsafe(ast.parse(file.read_text())) == []


def test_modules_import_each_other_without_cycles() -> None:
    names = {f"{package_of(file)}.{file.stem}".removesuffix(".__init__"): file for _, file in MODULES}
    after: dict[str, set[str]] = {}
    for name, file in names.items():
        found = [
            i.name for i in imports(ast.parse(file.read_text()), package_of(file)) if i.at_start and not i.for_types
        ]
        after[name] = {
            module for imported in found for module in (imported, imported.rpartition(".")[0]) if module in names
        } - {name, package_of(file)}

    while leaves := [name for name, needed in after.items() if not needed & set(after)]:
        for name in leaves:
            del after[name]

    assert sorted(after) == [], "these import each other in a circle, or what is in one"


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("probes", "from rheoscope.diagnostics.finding import Finding"),
        ("probes", "from rheoscope import reports"),
        ("probes", "import rheoscope"),
        ("probes", "from ..lab import transformer"),
        ("probes", "from .. import reports"),
        ("probes", "def late():\n    from ..reports.report import write_report"),
        ("probes", "import pandas as pd"),
        ("probes", "from importlib import import_module\nimport_module('rheoscope.lab')"),
        ("probes", "if TYPE_CHECKING:\n    from rheoscope.diagnostics.finding import Finding"),
        ("diagnostics", "from rheoscope.probes.taps import Taps"),
        ("diagnostics", "from rheoscope.probes import attach"),
        ("diagnostics", "from ..probes import taps"),
        ("diagnostics", "import torch"),
        ("diagnostics", "if TYPE_CHECKING:\n    import torch"),
        ("reports", "from rheoscope.lab.architecture import Architecture"),
        ("reports", "def late():\n    from pyarrow import parquet"),
        ("lab", "from rheoscope import reports"),
        ("lab", "import plotly.graph_objects as go"),
        ("facade", "import torch.nn"),
    ],
)
def test_the_fence_sees_every_way_around_it(room: str, source: str) -> None:
    package = "rheoscope" if room == "facade" else f"rheoscope.{room}"

    assert trespasses(room, ast.parse(source), package)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("probes", "from .anatomy import Anatomy\nfrom rheoscope.probes.errors import ProbeError\nimport torch"),
        ("probes", "def frame():\n    import pandas as pd"),
        ("probes", "if TYPE_CHECKING:\n    import pandas as pd"),
        ("diagnostics", "from rheoscope.probes.recording import Recording\nimport numpy, pandas"),
        ("reports", "from rheoscope.diagnostics.finding import Finding\nfrom rheoscope.probes.anatomy import Anatomy"),
        ("lab", "from rheoscope.probes.recorder import attach\nimport torch"),
        ("facade", "import typer\nfrom rheoscope.reports.report import write_report"),
    ],
)
def test_the_fence_lets_through_what_is_allowed(room: str, source: str) -> None:
    package = "rheoscope" if room == "facade" else f"rheoscope.{room}"

    assert trespasses(room, ast.parse(source), package) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def late():\n    import dill as d",
        "import torch as t\nt.load('x')",
        "from torch import load as read\nread('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "import pandas as pd\npd.read_pickle('x')",
        "eval('1')",
    ],
)
def test_unpickling_and_executing_is_seen_in_every_spelling(source: str) -> None:
    assert unsafe(ast.parse(source))


def test_loading_safely_is_allowed() -> None:
    source = "import json, numpy as np\njson.loads('1')\nnp.load('x', allow_pickle=False)\nmodel.eval()\nself.load('x')"

    assert unsafe(ast.parse(source)) == []
