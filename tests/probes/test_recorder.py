"""``attach`` refuses what cannot be probed in one sentence, and continues a recording where it was left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, gpt2, loss_of
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import ProbeError, RecordingError, RecordingExistsError
from rheoscope.probes.recorder import attach
from torch import nn


def run(model: nn.Module, folder: Path, n_steps: int = 2, **options: object) -> None:
    """Train a few steps under a probe."""
    model.train()
    with attach(model, every=1, folder=folder, **options) as probe:
        for _ in range(n_steps):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            probe.step(loss)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((NanoGPT(),), {"every": 0}, "Expected every >= 1"),
        ((NanoGPT(),), {"every": 2.5}, "Expected every >= 1"),
        ((nn.DataParallel(NanoGPT()),), {}, "got DataParallel.*use DistributedDataParallel"),
        ((lambda ids: ids,), {}, "Expected a torch.nn.Module that runs as itself, got function"),
        ((NanoGPT(), object()), {}, "Expected a torch.optim.Optimizer, several or none, got object"),
    ],
)
def test_what_cannot_be_probed_is_refused_before_a_folder_is_made(
    arguments: tuple, options: dict, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ProbeError, match=sentence):
        attach(*arguments, folder=tmp_path / "run", **options)

    assert not (tmp_path / "run").exists()


def test_an_anatomy_of_another_model_is_refused(tmp_path: Path) -> None:
    other = gpt2()
    anatomy = discover(other, batch_of(other))
    model = NanoGPT()

    with pytest.raises(ProbeError, match=r"Expected an anatomy of this model, got one with .* NanoGPT does not have"):
        attach(model, folder=tmp_path / "run", anatomy=anatomy)

    assert not (tmp_path / "run").exists()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_given_anatomy_measures_what_discovery_would(tmp_path: Path) -> None:
    model = NanoGPT()
    anatomy = discover(model, batch_of(model))

    run(model, tmp_path / "given", anatomy=anatomy, strict=True)
    model.zero_grad()
    run(model, tmp_path / "found", strict=True)

    from rheoscope.probes.recording import Recording

    given, found = Recording.load(tmp_path / "given"), Recording.load(tmp_path / "found")
    assert given.anatomy == found.anatomy == anatomy
    assert given.table("activations").equals(found.table("activations"))


def test_a_folder_that_holds_a_recording_is_refused(tmp_path: Path) -> None:
    run(NanoGPT(), tmp_path / "run")

    with pytest.raises(RecordingExistsError, match=r"which holds one\. Pass resume=True to continue it"):
        attach(NanoGPT(), folder=tmp_path / "run")


def test_tables_that_lost_their_manifest_are_not_written_over(tmp_path: Path) -> None:
    run(NanoGPT(), tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()

    with pytest.raises(RecordingExistsError):
        attach(NanoGPT(), folder=tmp_path / "run")


def test_a_folder_with_other_files_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 1")

    run(NanoGPT(), tmp_path, strict=True)

    assert (tmp_path / "config.yaml").read_text() == "lr: 1"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(RecordingError, match="Expected a folder that can be written, got"):
        attach(NanoGPT(), folder=tmp_path / "file" / "run")


def test_resume_goes_on_behind_the_last_step(tmp_path: Path) -> None:
    model = NanoGPT()
    for _ in range(3):
        run(model, tmp_path / "run", resume=True, strict=True)

    from rheoscope.probes.recording import Recording

    recording = Recording.load(tmp_path / "run")
    assert recording.table("steps")["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert sorted(recording.table("activations")["step"].unique()) == [0, 1, 2, 3, 4, 5]
    assert recording.manifest["resumed_at"] == [2, 4]
    assert recording.table("events")["kind"].tolist() == ["resumed", "resumed"]


def test_resume_keeps_label_creation_and_anatomy_until_it_knows_better(tmp_path: Path) -> None:
    model = NanoGPT()
    run(model, tmp_path / "run", label="first")

    with attach(model, folder=tmp_path / "run", resume=True) as probe:
        recording = probe.recording

    assert recording.manifest["label"] == "first"
    assert recording.anatomy.n_branches == 4


def test_resume_after_a_kill_does_not_number_a_half_written_step_twice(tmp_path: Path) -> None:
    model = NanoGPT().train()
    probe = attach(model, every=1, folder=tmp_path / "run", strict=True)
    loss_of(model, batch_of(model)).backward()
    probe._keep()
    probe._desk._pending.write(probe._writer.columns)
    del probe  # as if the process were killed between a step's tables

    run(NanoGPT(), tmp_path / "run", resume=True, strict=True)

    from rheoscope.probes.recording import Recording

    recording = Recording.load(tmp_path / "run")
    assert sorted(recording.table("activations")["step"].unique()) == [0, 1, 2]
    assert recording.table("steps")["step"].tolist() == [1, 2]


def test_resume_without_a_recording_begins_one(tmp_path: Path) -> None:
    run(NanoGPT(), tmp_path / "run", resume=True, strict=True)

    assert (tmp_path / "run" / "manifest.json").is_file()


def test_resume_of_a_damaged_recording_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run(NanoGPT(), tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text("{")

    with pytest.raises(RecordingError, match="Expected JSON in"):
        attach(NanoGPT(), folder=tmp_path / "run", resume=True)

    assert (tmp_path / "run" / "manifest.json").read_text() == "{"


def test_without_a_folder_runs_are_named_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    probes = [attach(NanoGPT()) for _ in range(2)]
    for probe in probes:
        probe.close()

    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_the_optimizers_numbers_are_those_of_its_step(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss = loss_of(model, batch_of(model))
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
        optimizer.step()
        probe.step(loss, batch_id=("shard", 3), n_tokens=24)

    row = probe.recording.table("steps").iloc[0]
    assert row["gradient_norm"] == pytest.approx(norm, rel=1e-6)
    assert (row["lr"], row["batch_id"], row["n_tokens"]) == (0.5, "('shard', 3)", 24)
    assert row["loss"] == loss.item()


def test_an_empty_anatomy_measures_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    run(NanoGPT(), tmp_path / "run", anatomy=Anatomy(), strict=True)

    from rheoscope.probes.recording import Recording

    recording = Recording.load(tmp_path / "run")
    assert recording.table("activations").empty
    assert len(recording.table("parameters")) > 0


def test_resume_at_a_step_repeats_it(tmp_path: Path) -> None:
    from rheoscope.probes.recording import Recording

    for resume in (False, True, 1):
        run(NanoGPT(), tmp_path / "run", resume=resume, strict=True)

    recording = Recording.load(tmp_path / "run")
    assert recording.table("steps")["step"].tolist() == [0, 1, 2]
    assert recording.manifest["resumed_at"] == [2, 1]


@pytest.mark.parametrize("resume", [-1, "yes", 1.5, None])
def test_what_is_no_step_to_resume_at_is_refused(resume: object, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="resume to be True, False or a step"):
        attach(NanoGPT(), folder=tmp_path / "run", resume=resume)  # type: ignore[arg-type]
