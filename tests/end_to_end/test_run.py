"""``rheoscope run`` records training scripts as they are, and leaves them as they would be without it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rheoscope.probes.recording import Recording

SCRIPTS = Path(__file__).parent / "scripts"
ALONE = ["train_nanogpt", "train_hf_trainer", "train_lightning", "train_accelerate"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
RUN = [sys.executable, "-m", "rheoscope", "run"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def done(command: list[str], folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder`` to its end."""
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, **options)


@dataclass(frozen=True)
class Trained:
    """What a script left: what it logged itself, what it printed, and the recording where there is one."""

    log: dict[str, Any]
    stdout: str
    recording: Recording | None = None
    report: str = ""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Return what the scripts do by themselves; those of one process share one, to import their libraries once."""
    folder = tmp_path_factory.mktemp("plain")
    ended = done(
        [sys.executable, str(SCRIPTS / "plain.py"), ".", *(str(SCRIPTS / f"{name}.py") for name in ALONE)], folder
    )
    assert ended.returncode == 0, ended.stderr
    found = {
        name: Trained(json.loads((folder / name / "log.json").read_text()), (folder / name / "stdout").read_text())
        for name in ALONE
    }
    ended = done([*TORCHRUN, str(SCRIPTS / "train_ddp.py"), "."], folder)
    assert ended.returncode == 0, ended.stderr
    return found | {"train_ddp": Trained(json.loads((folder / "log.json").read_text()), ended.stdout)}


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Return what a script does under ``rheoscope run``; each runs once."""
    kept: dict[str, Trained] = {}

    def run(name: str) -> Trained:
        if name not in kept:
            folder = tmp_path_factory.mktemp(name)
            start = [*TORCHRUN, "-m", "rheoscope", "run"] if name == "train_ddp" else RUN
            ended = done([*start, "--folder", "run", "--every", "4", str(SCRIPTS / f"{name}.py"), "."], folder)
            assert ended.returncode == 0, ended.stderr
            report = re.search(r"Report: (.*)", ended.stderr)
            kept[name] = Trained(
                json.loads((folder / "log.json").read_text()),
                ended.stdout,
                Recording.load(folder / "run"),
                Path(report[1]).read_text(encoding="utf-8") if report else "",
            )
        return kept[name]

    return run


@pytest.mark.parametrize("name", [*ALONE, "train_ddp"])
def test_what_is_trained_is_the_same_bit_for_bit(
    name: str, plain: dict[str, Trained], probed: Callable[[str], Trained]
) -> None:
    assert probed(name).log == plain[name].log


@pytest.mark.parametrize("name", [*ALONE, "train_ddp"])
def test_what_the_script_logs_is_what_is_recorded(name: str, probed: Callable[[str], Trained]) -> None:
    trained = probed(name)
    assert trained.recording is not None
    steps = trained.recording.table("steps")

    logged: dict[str, list[float]] = {
        key: [step[key] for step in trained.log["steps"]] for key in trained.log["steps"][0]
    }

    # Clipping is by 0.5 or 1: what scripts log is the norm before.
    assert list(steps["unclipped_gradient_norm"]) == pytest.approx(logged.pop("gradient_norm"), rel=1e-5)
    for key, values in logged.items():
        assert list(steps[key]) == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("name", [*ALONE, "train_ddp"])
def test_every_block_is_measured_from_the_first_step(name: str, probed: Callable[[str], Trained]) -> None:
    trained = probed(name)
    assert trained.recording is not None

    seen = trained.recording.table("activations").query("site == 'state' and direction == 'backward'")

    assert trained.recording.anatomy.n_blocks == 3
    assert trained.recording.anatomy.is_complete
    assert set(seen["step"]) == {0, 4, 8}
    assert set(trained.recording.table("events")["kind"]) == set()
    assert set(trained.recording.table("steps")["n_ranks"]) == {2 if name == "train_ddp" else 1}


@pytest.mark.parametrize("name", [*ALONE, "train_ddp"])
def test_there_is_a_report_and_standard_output_is_the_scripts(
    name: str, plain: dict[str, Trained], probed: Callable[[str], Trained]
) -> None:
    times = re.compile(r"'(train|eval)_(runtime|\w+_per_second)': '[\d.]+',? ?")

    assert times.sub("", probed(name).stdout) == times.sub("", plain[name].stdout)
    assert "<html" in probed(name).report
    assert f"{name}.py" in probed(name).report


TRAINS = """
import os, signal, sys, time
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.embedding, self.head = nn.Embedding(8, 16), nn.Linear(16, 8)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)))

def train(n):
    for step in range(n):
        tokens = torch.randint(8, (2, 5))
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step(); optimizer.zero_grad()

model = Model(); optimizer = torch.optim.SGD(model.parameters(), 0.1)
"""


ALL_OF_IT = (
    """
import os; os.environ["OMP_NUM_THREADS"] = "1"
import atexit, pickle, signal, sys
print(sys.argv, __name__, __file__, __spec__, __package__, sys.path[0], "torch" in sys.modules)
print(sys.modules["__main__"].__dict__ is globals(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
class A: pass
assert type(pickle.loads(pickle.dumps(A()))) is A
atexit.register(print, "last")
"""
    + TRAINS
    + """
import logging; logging.basicConfig(stream=sys.stdout)
print(type(torch.__loader__), vars(torch.__loader__).keys())
data = torch.utils.data.DataLoader(list(range(3)), num_workers=1, multiprocessing_context="fork")
for _ in data:
    train(1)
if os.fork() == 0:
    raise SystemExit(3)
print(os.waitstatus_to_exitcode(os.wait()[1]))
logging.getLogger().warning("done")
def lost():
    raise ValueError("no more data")
lost()
"""
)


def ended(
    source: str, folder: Path, *arguments: str, probes: bool = True
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a script, and return with it what we said."""
    (folder / "train.py").write_text(source)
    start = [*RUN, "--folder", "run"] if probes else [sys.executable]
    found = done([*start, "train.py", *arguments], folder)
    return found, "".join(line for line in found.stderr.splitlines(keepends=True) if line.startswith("rheoscope: "))


def test_a_script_that_crashes_ends_as_it_would_and_has_its_report(tmp_path: Path) -> None:
    without, _ = ended(ALL_OF_IT, tmp_path, "--every", "3", "-m", "x", probes=False)

    with_probes, said = ended(ALL_OF_IT, tmp_path, "--every", "3", "-m", "x")

    assert "['train.py', '--every', '3', '-m', 'x'] __main__" in without.stdout
    assert with_probes.stdout == without.stdout
    assert with_probes.returncode == without.returncode == 1
    assert with_probes.stderr.replace(said, "") == without.stderr
    assert said == f"rheoscope: Model, 3 steps. Report: {tmp_path}/run/report.html\n"
    assert "no more data" in Recording.load(tmp_path / "run").table("events")["sentence"][0]


def test_a_script_that_is_interrupted_ends_as_it_would_and_has_its_report(tmp_path: Path) -> None:
    # As from a terminal: what runs in the background may have been told to ignore it.
    trained = "signal.signal(signal.SIGINT, signal.default_int_handler)\ntrain(2)\n"
    found, said = ended(TRAINS + trained + "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n", tmp_path)

    assert found.returncode == -signal.SIGINT
    assert found.stderr.replace(said, "").endswith("KeyboardInterrupt\n")
    assert "Model, 2 steps. Report:" in said


def test_a_script_that_ends_itself_hard_has_its_report(tmp_path: Path) -> None:
    found, said = ended(TRAINS + "train(2)\nos._exit(5)\n", tmp_path)

    assert found.returncode == 5
    assert "Model, 2 steps. Report:" in said


def test_a_script_that_trains_nothing_is_told_so_in_one_line(tmp_path: Path) -> None:
    found, said = ended("import sys; print('torch' in sys.modules); sys.exit('no data')", tmp_path)

    assert found.returncode == 1
    assert found.stdout == "False\n"
    assert found.stderr.replace(said, "") == "no data\n"
    assert said.count("\n") == 1
    assert "no training was seen" in said


def test_a_script_that_uses_rheoscope_itself_keeps_its_own_errors(tmp_path: Path) -> None:
    found, said = ended("import rheoscope as rs\nrs.attach(3)\n", tmp_path)

    assert found.returncode == 1
    assert "rheoscope.probes.errors.ProbeError: Expected a torch.nn.Module" in found.stderr.replace(said, "")
    assert "must import torch before" in said


def test_a_termination_ends_the_script_at_once_and_what_was_written_can_be_reported(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINS + "train(61)\nprint('ready', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [*RUN, "--folder", "run", "train.py"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        started = time.monotonic()
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=30)

    assert running.returncode == -signal.SIGTERM
    assert time.monotonic() - started < 10
    assert len(Recording.load(tmp_path / "run").table("steps")) >= 50


def test_a_module_runs_as_python_itself_runs_it(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import sys; print(sys.argv)")
    (tmp_path / "package" / "__main__.py").write_text(
        "import sys; from . import other; print(sys.argv, __spec__.name, __package__, __file__, sys.path[0])"
    )
    (tmp_path / "package" / "other.py").write_text("")

    with_probes = done([*RUN, "-m", "package", "--lr", "1"], tmp_path)
    without = done([sys.executable, "-m", "package", "--lr", "1"], tmp_path)

    assert with_probes.returncode == without.returncode == 0
    assert with_probes.stdout == without.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["none.py"], "'none.py', which is no file"), (["-m", "none.such"], "'none.such'"), (["."], "which is no file")],
)
def test_what_cannot_be_run_is_a_wrong_use(arguments: list[str], told: str, tmp_path: Path) -> None:
    ended = done([*RUN, *arguments], tmp_path)

    assert ended.returncode == 2
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1
