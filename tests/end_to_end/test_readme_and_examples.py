"""What README and the examples show runs as it stands."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracles import batch_of, gpt2
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.probes.recording import Recording
from rheoscope.reports import report as report_module
from zoo.stubs import stub_torchvision

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
WITH_RANKS = {
    "train_with_torchrun.py": "runs/*",
    "train_with_fsdp2.py": "runs/*",
    "train_a_pipeline.py": "pipeline-run",
}
# A rank of a size for tests, its report a line: a page takes seconds to draw, and has tests of its own.
SMALL = """
import runpy
from rheoscope.reports import report

report.render = lambda subject, diagnosis=None, form="html": f"Written by Rheoscope. {{subject!r}}"
example = runpy.run_path({example!r})
example["main"].__globals__["STEPS"] = {steps}
example["main"]()
"""


def test_the_lines_of_readme_put_probes_on_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = gpt2()
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loader": [batch_of(model)] * 3,
    }
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code

    exec(compile(code[1], "README.md", "exec"), names)

    assert len(names["probe"].recording.table("steps")) == 3  # type: ignore[attr-defined]
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("name", list(WITH_RANKS))
def test_example_of_several_processes_ends_with_one_report(name: str, tmp_path: Path) -> None:
    small = tmp_path / "small.py"
    small.write_text(SMALL.format(example=str(EXAMPLES / name), steps=3))
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(small)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    report = Path(ended.stdout.strip().splitlines()[-1].removeprefix("Report: "))
    assert report.is_file()
    (folder,) = tmp_path.glob(WITH_RANKS[name])
    assert set(Recording.load(folder).table("steps")["n_ranks"]) == {2}


@pytest.fixture
def _line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write verdicts instead of pages, which take seconds to draw and have tests of their own."""

    def line(subject: Recording | Comparison, diagnosis: object = None, *, form: str) -> str:
        verdicts = [d.verdict for d in subject.diagnoses.values()] if isinstance(subject, Comparison) else []
        return f"Written by Rheoscope. {verdicts or diagnose(subject).verdict}"

    monkeypatch.setattr(report_module, "render", line)


@pytest.mark.usefixtures("_line_alone")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in WITH_RANKS))
def test_example_ends_with_a_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "train_vit.py":
        stub_torchvision()
        pytest.importorskip("timm")
    if name == "check_trained_weights.py":
        wheels = sorted(ROOT.glob("rxnmapper-*.whl"))
        if not wheels:
            pytest.skip("its wheel is not here: pip download --no-deps rxnmapper==0.4.3")
        (tmp_path / wheels[-1].name).symlink_to(wheels[-1])
    example = runpy.run_path(str(EXAMPLES / name))
    example["main"].__globals__["STEPS"] = 3

    example["main"]()

    report = Path(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("Report: "))
    assert "Written by Rheoscope." in report.read_text(encoding="utf-8")


def test_examples_are_short_and_there_are_ten() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}

    assert sum(n < 60 for n in lengths.values()) >= 10
    assert [name for name, n in lengths.items() if n >= 60] == ["train_a_pipeline.py"], "it defines its stages"
