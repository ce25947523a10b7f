"""Recordings from strangers are read or refused in a sentence; nothing in the read path could run what they hold."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .__main__ import KINDS, trials
from .mutations import MUTATIONS

ROOT = Path(__file__).parents[2]
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "yaml",
    "joblib",
    "subprocess",
    "ctypes",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "load_module", "system", "popen"}
# Modules that read or show recordings: everything but the instruments, which have the model in their hands.
READ_PATH = (
    *(ROOT / "diagnostics").rglob("*.py"),
    *(ROOT / "reports").rglob("*.py"),
    # Alarms start the user's own command, and judge in a process of their own: what they start is none of a recording's.
    *(path for path in (ROOT / "facade").rglob("*.py") if path.stem not in ("alarm", "watching")),
    *(
        ROOT / "probes" / f"{name}.py"
        for name in (
            "recording",
            "table_files",
            "summaries",
            "log",
            "schema",
            "step_choice",
            "anatomy",
            "anatomy_reading",
            "stage_folders",
            "stage_joining",
            "stage_tables",
            "joined_anatomy",
        )
    ),
)


def test_every_kind_of_damage_is_survived() -> None:
    bad = [
        f"{name} {index} {outcome}"
        for name, index, outcomes in trials(len(MUTATIONS), seed=7)
        for outcome in outcomes
        if outcome.kind not in KINDS[:2]
    ]
    assert bad == []


@pytest.mark.parametrize("path", READ_PATH, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_read_path_unpickles_and_evaluates_nothing(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            is_torch_load = name == "load" and owner in ("torch", "np", "numpy")
            if (name in FORBIDDEN_CALLS and owner in ("", "os", "builtins", "importlib")) or is_torch_load:
                found.append(f"{owner}.{name}")
    assert found == []
