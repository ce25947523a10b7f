"""A run is looked at while it goes on, from its log alone, and alarms are given without a shell."""

from __future__ import annotations

import json
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import rheoscope as rs
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.alarm import Alarm, by_command
from rheoscope.command_line import app
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.finding import Evidence, Finding
from rheoscope.diagnostics.latest import latest
from rheoscope.probes.errors import RheoscopeError
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.reports.live import sparks
from typer.testing import CliRunner

HOSTILE = "h; touch stolen \x1b[31m$(touch stolen)\n`touch stolen`"


@pytest.fixture(scope="module")
def open_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not closed, its last record cut in half."""
    folder = tmp_path_factory.mktemp("runs") / "open"
    torch.manual_seed(0)
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = attach(model, optimizer, every=1, folder=folder, label=f"run {HOSTILE}")
    for step in range(40):
        loss = loss_of(model, batch_of(model, seed=step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        probe.step(loss)
    target = folder.with_name("copy")
    target.mkdir()
    for path in folder.iterdir():
        content = path.read_bytes()
        (target / path.name).write_bytes(content[: len(content) - 50] if path.suffix == ".arrow" else content)
    probe.close()
    return target


def test_an_open_run_with_half_written_records_is_shown(open_run: Path) -> None:
    result = CliRunner().invoke(app, ["watch", str(open_run), "--once"])

    assert result.exit_code == 0
    assert "open, step" in result.output
    assert "gradient RMS" in result.output
    assert "\x1b" not in result.output


def test_the_profile_is_that_of_the_last_sampled_step(open_run: Path) -> None:
    recording = Recording.load(open_run)
    stand = latest(recording)
    rows = recording.table("activations", steps=stand.sampled_step)
    states = rows[(rows["site"] == "state") & (rows["direction"] == "forward") & (rows["block"] >= 0)]
    outputs = states.sort_values("depth").groupby("block")["rms"].last()

    assert stand.sampled_step > 0
    assert stand.profile["state_rms"].tolist() == outputs.tolist()
    assert stand.losses[-1] == recording.table("steps")["loss"].iloc[-1]


def test_watch_follows_a_run_until_it_is_closed(open_run: Path, tmp_path: Path) -> None:
    Recording.load(open_run).save(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({**manifest, "status": "closed"}))

    result = CliRunner().invoke(app, ["watch", str(tmp_path / "run"), "--every", "0.1"])

    assert result.exit_code == 0
    assert "closed, step" in result.output


def finding(component: str = HOSTILE) -> Finding:
    return Finding("odd", "warning", 1.0, 3, component, component, 7, component, Evidence("a", 1.0, 0.0, "b"), "")


def test_an_alarm_is_given_once_and_names_stay_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "alarm.py"
    script.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "told = [sys.argv[1:], json.load(sys.stdin), os.environ['RHEOSCOPE_COMPONENT'], os.environ['RHEOSCOPE_BLOCK']]\n"
        "print(json.dumps(told), file=open('told.jsonl', 'a'))\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    alarm = Alarm(by_command(f"{script} --to 'the team'"), "warning")

    failed = alarm.sound(Diagnosis((finding(), replace(finding(), severity="info"))), tmp_path)
    failed += alarm.sound(Diagnosis((finding(),)), tmp_path)

    (line,) = (tmp_path / "told.jsonl").read_text().splitlines()
    arguments, value, component, block = json.loads(line)
    assert failed == []
    assert arguments == ["--to", "the team"]
    assert (value["component"], block) == (HOSTILE, "3")
    assert component == "".join(c if c.isprintable() else " " for c in HOSTILE)
    assert not (tmp_path / "stolen").exists()


def test_an_alarm_that_fails_is_said_and_one_that_cannot_start_is_refused(tmp_path: Path) -> None:
    failing = Alarm(by_command("false"), "warning")

    assert failing.sound(Diagnosis((finding(),)), tmp_path) == ["The command for odd ended with 1."]
    with pytest.raises(RheoscopeError, match="Expected a program"):
        by_command("no-such-program --x")
    with pytest.raises(RheoscopeError, match="Close its quotes"):
        by_command("echo 'a")


def test_sparks_rise_from_the_least_to_the_largest() -> None:
    assert sparks([0.0, 0.5, 1.0]) == "▁▄█"
    assert sparks([1.0, 1.0]) == "▁▁"
    assert sparks([1.0]) == ""


def test_a_function_hears_of_each_finding_of_a_run_once_and_may_fail(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    heard: list[str] = []

    def tell(found: Finding) -> None:
        heard.append(found.code)
        raise ValueError("the function's own error")

    model = NanoGPT(n_blocks=6).train()
    with torch.no_grad():
        dict(model.named_parameters())["blocks.3.mlp.0.weight"].mul_(50)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with rs.watch(folder, tell, every=60), attach(model, optimizer, every=1, folder=folder) as probe:
        for step in range(2):
            loss = loss_of(model, batch_of(model, seed=step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)

    wanted = [found for found in rs.diagnose(probe.recording) if found.severity != "info"]
    assert "weight-scale" in heard
    assert sorted(heard) == sorted(found.code for found in wanted)


def test_a_finding_survives_its_plain_form() -> None:
    assert Finding.from_json(json.loads(json.dumps(finding().to_json()))) == finding()
