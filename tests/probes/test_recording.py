"""A recording is read by step and column, saved and loaded whole, and trusted in nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.errors import RecordingError, RecordingExistsError
from rheoscope.probes.log import MANIFEST
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.schema import FORMAT, TABLES


def stepped(n: int = 10) -> Recording:
    """Return a recording in memory of ``n`` steps."""
    frame = pd.DataFrame({"step": range(n), "loss": [float(i) for i in range(n)], "is_sampled": [True] * n})
    return Recording.from_tables({"label": "made"}, Anatomy(), {"steps": frame})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("recording") / "run"
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, every=2, folder=folder, label="small") as probe:
        for _ in range(5):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    return folder


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (None, list(range(10))),
        (3, [3]),
        (range(2, 5), [2, 3, 4]),
        (range(1, 9, 3), [1, 4, 7]),
        (slice(None, None, 4), [0, 4, 8]),
        (slice(3, None, 4), [3, 7]),
        (slice(7, None), [7, 8, 9]),
        ({9, 0, 77}, [0, 9]),
        ([], []),
        (torch.tensor([1, 2]).numpy(), [1, 2]),
        (torch.tensor(4).numpy()[()], [4]),
    ],
)
def test_steps_choose_rows_as_in_python(steps: object, expected: list[int], tmp_path: Path) -> None:
    in_memory = stepped()
    on_disk = in_memory.save(tmp_path / "run")

    assert in_memory.table("steps", steps=steps)["step"].tolist() == expected
    assert on_disk.table("steps", steps=steps, columns=["loss"])["loss"].tolist() == [float(i) for i in expected]


def test_columns_come_in_the_order_asked_for() -> None:
    frame = stepped().table("steps", columns=["loss", "step"])

    assert list(frame.columns) == ["loss", "step"]


def test_a_table_that_was_not_recorded_is_empty_with_its_columns() -> None:
    for name, columns in TABLES.items():
        assert list(stepped(0).table(name).columns) == list(columns)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        ({"name": "weights"}, "Expected one of the tables"),
        ({"name": "steps", "columns": ["los"]}, r"Expected columns of 'steps' among .* got \['los'\]"),
        ({"name": "steps", "steps": slice(-3, None)}, "Expected a range of steps that counts up"),
        ({"name": "steps", "steps": range(5, 0, -1)}, "Expected a range of steps that counts up"),
    ],
)
def test_what_does_not_exist_is_refused_in_a_sentence(ask: dict, sentence: str) -> None:
    with pytest.raises(RecordingError, match=sentence):
        stepped().table(**ask)


def test_unknown_tables_and_columns_are_refused_when_made() -> None:
    with pytest.raises(RecordingError, match="Expected tables and columns of the recording format"):
        Recording.from_tables({}, Anatomy(), {"steps": pd.DataFrame({"steep": [1]})})


def test_saving_and_loading_keeps_everything(run: Path, tmp_path: Path) -> None:
    first = Recording.load(run)

    second = first.save(tmp_path / "copy")
    third = second.save(tmp_path / "copy of the copy")

    assert third.manifest == first.manifest
    assert third.anatomy == first.anatomy
    for name in TABLES:
        pd.testing.assert_frame_equal(third.table(name), first.table(name))
    assert len(first.table("activations")) > 0


def test_saving_over_a_recording_is_refused(run: Path) -> None:
    with pytest.raises(RecordingExistsError):
        Recording.load(run).save(run)


def test_saving_where_nothing_can_be_written_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(RecordingError, match="Expected a folder that can be written"):
        Recording.load(run).save(tmp_path / "file" / "below")


def test_a_recording_says_what_it_is(run: Path) -> None:
    assert repr(Recording.load(run)) == f"Recording({str(run)!r}, 2 blocks, 4 branches)"


def test_a_folder_without_a_recording_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"which has no manifest.json. Pass the folder that was given to attach."):
        Recording.load(tmp_path)


DEEP = "[" * 200_000
ANATOMY = {"stacks": [], "problems": [], "gains": [], "norm_biases": [], "vocabulary": 0}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "Expected JSON"),
        ('{"format": 2, "anat', "Expected JSON"),
        ("\x00\x01garbage", "Expected JSON"),
        (DEEP, "Expected JSON"),
        ("[]", f"Expected recording format {FORMAT}, got 'list'"),
        ("null", "Expected recording format"),
        ('{"format": 999}', "got 999"),
        (f'{{"format": {FORMAT}}}', "Expected an anatomy"),
        (json.dumps({"format": FORMAT, "anatomy": []}), "Expected an anatomy"),
        (json.dumps({"format": FORMAT, "anatomy": {**ANATOMY, "vocabulary": "many"}}), "Expected an anatomy"),
        (json.dumps({"format": FORMAT, "anatomy": {**ANATOMY, "problems": ["x" * 10**6]}}), "Expected an anatomy"),
        (json.dumps({"format": FORMAT, "anatomy": {**ANATOMY, "stacks": [{"index": 0}]}}), "Expected an anatomy"),
        (json.dumps({"format": FORMAT, "anatomy": {**ANATOMY, "vocabulary": float("inf")}}), "Expected "),
        (json.dumps({"format": FORMAT, "anatomy": ANATOMY, "label": ["no text"]}), "Expected a label"),
        (json.dumps({"format": FORMAT, "anatomy": ANATOMY, "label": "x" * 10**6}), "Expected a label"),
    ],
)
def test_a_hostile_or_cut_manifest_is_a_clear_error(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)

    with pytest.raises(RecordingError, match=sentence) as caught:
        Recording.load(tmp_path)

    assert len(str(caught.value)) < 1000


def test_a_recording_of_the_format_before_is_read_and_its_rows_can_be_added_to(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    manifest = json.loads((old / MANIFEST).read_text()) | {"format": 5}
    (old / MANIFEST).write_text(json.dumps(manifest))

    recording = Recording.load(old)
    more = recording.with_rows("attributions", [{"method": "update", "block": 1, "value": 2.0, "step": 3}])

    assert recording.table("steps").equals(Recording.load(run).table("steps"))
    assert more.table("attributions")["value"].tolist() == [2.0]
    assert more.table("steps").equals(recording.table("steps"))
    assert more.save(tmp_path / "new").manifest["format"] == FORMAT


@pytest.mark.parametrize("rows", [[{"kind": 3}], [{"block": "first"}]])
def test_rows_that_no_table_holds_are_refused(rows: list[dict[str, object]], run: Path) -> None:
    with pytest.raises(RecordingError, match="Expected"):
        Recording.load(run).with_rows("attributions", rows)


def test_a_manifest_in_no_encoding_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b'{"format": "\xff\xfe"}')

    with pytest.raises(RecordingError, match="Expected JSON"):
        Recording.load(tmp_path)


def test_a_manifest_cut_at_any_byte_is_a_clear_error(run: Path, tmp_path: Path) -> None:
    whole = (run / MANIFEST).read_bytes()
    for cut in range(0, len(whole) - 2, 997):
        (tmp_path / MANIFEST).write_bytes(whole[:cut])
        with pytest.raises(RecordingError, match="Expected"):
            Recording.load(tmp_path)


def test_a_manifest_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rheoscope.probes.recording.MANIFEST_LIMIT", 10)
    (tmp_path / MANIFEST).write_text(json.dumps({"format": FORMAT}))

    with pytest.raises(RecordingError, match="Expected a manifest of at most 10 bytes"):
        Recording.load(tmp_path)


def test_names_in_a_manifest_lead_to_no_file_outside_the_folder(run: Path, tmp_path: Path) -> None:
    copy = Recording.load(run).save(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    manifest["label"] = "../../<script>alert(1)</script>"
    (tmp_path / "run" / MANIFEST).write_text(json.dumps(manifest))

    loaded = Recording.load(tmp_path / "run")

    assert loaded.manifest["label"] == manifest["label"]
    pd.testing.assert_frame_equal(loaded.table("steps"), copy.table("steps"))
