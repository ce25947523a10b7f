"""What the stages of a pipeline record, joined, is what one process records that holds all blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import cross_entropy, ids
from ranks_at_work import EACH, N_MICRO, STEPS, adamw, decoder
from ranks_compared import KEYS, differences, worked
from rheoscope.command_line import app
from rheoscope.probes.errors import ProbeError, RecordingError
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.stage_folders import join, stage_folder
from typer.testing import CliRunner

N = 3
# The state between two stages is seen where the first of them ends, and each has an optimizer of its own.
TABLES = {table: [key for key in keys if key != "module_path"] for table, keys in KEYS.items() if table != "groups"}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    worked(N, "stages", folder)
    return folder


def alone(folder: Path, n_micro: int, each: int) -> Recording:
    """Train the whole model in this process, one micro-batch after the other."""
    model = decoder()
    optimizer = adamw(model.parameters())
    with attach(model, optimizer, every=1, folder=folder, strict=True) as probe:
        for step in range(STEPS):
            tokens = ids(n_micro * each, seed=step)
            losses = [cross_entropy(model(part), part) for part in tokens.chunk(n_micro)]
            for loss in losses:
                loss.backward()
            for parameter in model.parameters():
                parameter.grad /= n_micro
            optimizer.step()
            optimizer.zero_grad()
            probe.step(sum(losses) / n_micro, n_tokens=tokens.numel() if n_micro > 1 else None)
    return probe.recording


def without_paths(recording: Recording) -> Recording:
    tables = {table: recording.table(table) for table in TABLES}
    tables["activations"] = tables["activations"].drop(columns="module_path")
    return Recording.from_tables(recording.manifest, recording.anatomy, tables)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_three_stages_record_what_one_process_does(name: str, stages: Path, tmp_path: Path) -> None:
    joint, single = Recording.load(stages / name), alone(tmp_path / "run", N_MICRO, 2)

    assert differences(without_paths(joint), without_paths(single), 1e-5, TABLES) == []
    assert joint.anatomy.n_blocks == 6
    assert joint.anatomy.is_complete
    assert joint.table("events").empty
    assert joint.manifest["status"] == "closed"
    assert joint.manifest["not_measured"] == single.manifest["not_measured"] == []
    assert joint.manifest["model"]["n_parameters"] == single.manifest["model"]["n_parameters"]


def test_stages_with_the_same_names_written_out_by_hand_record_what_one_process_does(
    stages: Path, tmp_path: Path
) -> None:
    joint, single = Recording.load(stages / "by hand"), alone(tmp_path / "run", 1, EACH)

    names = joint.table("parameters")["name"].str.replace(
        r"stage(\d)\.blocks\.(\d)", lambda found: f"blocks.{2 * int(found[1]) + int(found[2])}", regex=True
    )
    names = names.str.replace(r"stage\d\.", "", regex=True)
    tables = {table: without_paths(joint).table(table) for table in TABLES}
    tables["parameters"] = tables["parameters"].assign(name=names)
    renamed = Recording.from_tables(joint.manifest, joint.anatomy, tables)
    assert differences(renamed, without_paths(single), 1e-5, TABLES) == []


def test_two_stages_of_two_replicas_record_what_one_process_does(tmp_path: Path) -> None:
    worked(4, "replicated stages", tmp_path)
    joint, single = Recording.load(tmp_path / "replicated"), alone(tmp_path / "run", N_MICRO, 4)

    assert differences(without_paths(joint), without_paths(single), 1e-5, TABLES) == []
    assert joint.table("steps")["n_ranks"].tolist() == [4] * STEPS
    assert joint.table("ranks").groupby("step")["rank"].apply(list).tolist() == [[0, 1, 2, 3]] * STEPS


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_a_pipeline_trains_the_same_bit_for_bit_with_and_without_a_probe(name: str, stages: Path) -> None:
    for rank in range(N):
        assert json.loads((stages / f"bits {rank}.json").read_text())[name]


def test_what_is_sent_is_shown_to_be_what_is_received(stages: Path) -> None:
    joint = Recording.load(stages / "gpipe")

    # Two seams, two directions, of every micro-batch and step.
    assert f"agree to 0 of their size, on {2 * 2 * N_MICRO * STEPS} tensors" in joint.anatomy.notes[0]


def test_every_stage_says_what_it_saw(stages: Path) -> None:
    joint = Recording.load(stages / "gpipe")
    ranks = joint.table("ranks")

    assert ranks.groupby("step")["rank"].apply(list).tolist() == [[0, 1, 2]] * STEPS
    assert ranks["loss"].notna().tolist() == [False, False, True] * STEPS
    first = Recording.load(stage_folder(stages / "gpipe", 0)).table("parameters", steps=0)
    norm = np.sqrt((first["weight_rms"] ** 2 * first["n"]).sum())
    assert ranks["weight_norm"][0] == pytest.approx(norm)
    assert joint.table("groups")["group"].tolist() == [0, 1, 2] * STEPS


def test_stages_of_which_one_was_cut_off_are_joined_by_command(stages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stages / "cut", folder)

    # The first stage waited for the last, and joined what was there.
    assert "stage 2: open" in Recording.load(folder).manifest["status"]
    done = CliRunner().invoke(app, ["join", str(folder)])

    assert done.exit_code == 0
    assert "3 stages" in done.output
    joint = Recording.load(folder)
    assert joint.manifest["status"] == "closed"
    assert joint.table("steps")["step"].tolist() == list(range(STEPS))


def test_a_missing_stage_is_named(stages: Path, tmp_path: Path) -> None:
    shutil.copytree(stages / "gpipe", tmp_path / "run")
    shutil.rmtree(stage_folder(tmp_path / "run", 1))

    with pytest.raises(RecordingError, match=r"Expected 3 stages .* got 2: 0001 missing"):
        join(tmp_path / "run")


def test_stages_that_do_not_follow_one_another_are_not_joined(stages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stages / "gpipe", folder)
    shutil.rmtree(stage_folder(folder, 1))
    shutil.copytree(stage_folder(stages / "by hand", 1), stage_folder(folder, 1))

    with pytest.raises(RecordingError, match="Expected stage 1 to receive what stage 0 sends"):
        join(folder)
    # What was joined before is untouched.
    assert Recording.load(folder).anatomy.n_blocks == 6


def test_a_folder_of_stages_that_are_not_joined_says_how_to(stages: Path, tmp_path: Path) -> None:
    shutil.copytree(stages / "gpipe" / "stages", tmp_path / "run" / "stages")

    with pytest.raises(RecordingError, match="rheoscope join"):
        Recording.load(tmp_path / "run")


@pytest.mark.parametrize("given", [(2, 2), (-1, 2), (0,), [0, 2], "0/2", (True, 2)])
def test_a_stage_that_is_none_is_refused(given: object, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="stage=\\(index, number of stages\\)"):
        attach(torch.nn.Linear(2, 2), stage=given, folder=tmp_path / "run")  # type: ignore[arg-type]


def test_a_stage_needs_a_folder() -> None:
    with pytest.raises(ProbeError, match="the same on every stage"):
        attach(torch.nn.Linear(2, 2), stage=(0, 2))
