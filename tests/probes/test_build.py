"""Without a compiler the package is built all the same, and torch's operations serve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    "facade",
    "probes",
    "diagnostics",
    "reports",
    "lab",
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
CODE = """
import sys
sys.path[:0] = [{target!r}]
import torch
from rheoscope.probes.kernels import by_c
from rheoscope.probes.statistics import power_sums, statistics

assert by_c.__file__.startswith({target!r}), by_c.__file__
found = statistics(power_sums(torch.full((3, 4), -2.0))[None])
print(by_c.kernel is None, float(found["rms"]), float(found["mean"]))
"""


def built(tmp_path: Path, compiler: str) -> Path:
    """Copy the sources, build them with ``compiler`` and install them into a folder of their own; return it."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "build")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=ignore)
        else:
            shutil.copy(ROOT / part, source / part)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = {**os.environ, "CC": compiler, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run = subprocess.run(
        [*command, "--target", str(target), str(source)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return target


@pytest.mark.skipif(find_spec("setuptools") is None or find_spec("pip") is None, reason="nothing to build with")
@pytest.mark.parametrize(("compiler", "is_missing"), [("/bin/false", True), (os.environ.get("CC", "cc"), False)])
def test_a_package_installs_with_and_without_a_compiler(compiler: str, is_missing: bool, tmp_path: Path) -> None:
    if not is_missing and shutil.which(compiler) is None:
        pytest.skip("no compiler here")
    target = built(tmp_path, compiler)

    code = CODE.format(target=str(target))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run.stdout.split() == [str(is_missing), "2.0", "-2.0"], run.stderr
