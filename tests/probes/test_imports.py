"""What reads a recording starts without torch, measured in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

FRONTS = [
    "rheoscope.probes",
    "rheoscope.probes.recording",
    "rheoscope.probes.anatomy",
    "rheoscope.probes.errors",
    "rheoscope.diagnostics",
    "rheoscope.diagnostics.diagnosis",
    "rheoscope.diagnostics.comparison",
]


@pytest.mark.parametrize("module", FRONTS)
def test_importing_a_value_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'captum', 'plotly'}} & set(sys.modules)))"

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["rheoscope", "rheoscope.pytest_plugin"])
def test_the_front_imports_no_library_at_all(module: str) -> None:
    libraries = "{'torch', 'pandas', 'numpy', 'pyarrow', 'plotly', 'rich', 'typer', 'jinja2', 'captum', 'transformers'}"
    code = f"import sys, {module}; print(sorted({libraries} & set(sys.modules)))"

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "[]"


def test_opening_and_reading_a_recording_does_not_import_torch(tmp_path: object) -> None:
    code = f"""
import sys
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.recording import Recording
import pandas as pd
steps = pd.DataFrame({{"step": [0, 1], "loss": [2.0, 1.0]}})
saved = Recording.from_tables({{}}, Anatomy(), {{"steps": steps}}).save({str(tmp_path)!r} + "/run")
assert saved.table("steps", steps=1)["loss"].tolist() == [1.0]
print("torch" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "False"
