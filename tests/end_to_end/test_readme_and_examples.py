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
from rheoscope.probes.recording import Recording

ROOT = Path(__file__).parents[2]
WITH_RANKS = {"train_with_torchrun.py": "runs/*", "train_a_pipeline.py": "pipeline-run"}


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
    example = ROOT / "examples" / name
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(example)],
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


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "examples").glob("*.py") if path.name not in WITH_RANKS)
)
def test_example_ends_with_a_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")

    report = Path(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("Report: "))
    assert report.is_file()
