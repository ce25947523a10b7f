"""Sinks are shown what the recording holds, step by step, and the report; what they do wrong is theirs alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import rheoscope as rs
import torch
from oracles import NanoGPT, cross_entropy, ids
from rheoscope.probes.errors import ProbeError


class Kept:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.meta: Mapping[str, Any] = {}
        self.steps: dict[int, dict[str, float]] = {}
        self.ended: list[Path | None] = []

    def open(self, meta: Mapping[str, Any]) -> None:
        self.meta = meta

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.steps[step] = dict(values)

    def close(self, report: Path | None) -> None:
        self.ended.append(report)


class Broken(Kept):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise OSError("no room")


def trained(folder: Path, sinks: list[Any], n_steps: int = 5, **options: Any) -> rs.Recording:
    """Train a small decoder, every second step in full."""
    torch.manual_seed(0)
    model = NanoGPT()
    optimizer = torch.optim.AdamW(model.parameters())
    with rs.attach(model, optimizer, every=2, folder=folder, sinks=sinks, label="ours", **options) as probe:
        for seed in range(n_steps):
            loss = cross_entropy(model(ids(seed=seed)), ids(seed=seed))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    return probe.recording


def test_a_sink_is_told_the_extremes_of_what_is_recorded(tmp_path: Path) -> None:
    kept = Kept()

    recording = trained(tmp_path / "run", [kept])

    assert kept.meta["model"]["class_name"] == "NanoGPT"
    assert list(kept.steps) == [0, 2, 4]
    steps = recording.table("steps").set_index("step")
    states = recording.table("activations").query("site == 'state'")
    forward, backward = (states[states["direction"] == each].groupby("step")["rms"] for each in ("forward", "backward"))
    weights = recording.table("parameters").query("role == 'weight'").groupby("step")
    expected = {
        "loss": steps["loss"],
        "gradient_norm": steps["gradient_norm"],
        "unclipped_gradient_norm": steps["unclipped_gradient_norm"],
        "largest_state_rms": forward.max(),
        "smallest_state_gradient_rms": backward.min(),
        "smallest_skip_gain": recording.table("gradient_paths").groupby("step")["skip_gain"].min(),
        "largest_attention_logit": recording.table("attention").groupby("step")["logit_max"].max(),
        "largest_update_ratio": weights["update_ratio"].max(),
        "nonfinite_elements": recording.table("activations").groupby("step")["nonfinite"].sum(),
        "log_z": recording.table("logits").groupby("step")["log_z"].max(),
    }
    for name, values in expected.items():
        assert [told[name] for told in kept.steps.values()] == pytest.approx([values[step] for step in (0, 2, 4)]), name
    assert kept.ended == [None]


def test_a_sink_that_fails_is_told_nothing_more_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept()

    recording = trained(tmp_path / "run", [Broken(), kept])

    assert list(kept.steps) == [0, 2, 4]
    assert len(recording.table("steps")) == 5
    assert [record.message for record in caplog.records if "no room" in record.message] == caplog.messages
    assert len(caplog.messages) == 1


def test_training_is_the_same_bit_for_bit_with_and_without_sinks(tmp_path: Path) -> None:
    with_sinks = trained(tmp_path / "a", [Kept()])

    without = trained(tmp_path / "b", [])

    assert with_sinks.table("steps")["loss"].tolist() == without.table("steps")["loss"].tolist()


def test_the_report_is_written_once_when_the_recording_is_closed(tmp_path: Path) -> None:
    first, second, asked = Kept(), Kept(), []

    def report(recording: rs.Recording) -> Path:
        asked.append(recording.manifest["status"])
        return tmp_path / "page.html"

    trained(tmp_path / "run", [first, second], report=report)

    assert asked == ["closed"]
    assert first.ended == second.ended == [tmp_path / "page.html"]


def test_what_is_no_sink_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="to_tensorboard"):
        rs.attach(NanoGPT(), sinks=[print], folder=tmp_path / "run")  # type: ignore[list-item]  # refused

    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_scalars_and_where_the_report_is(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        recording = trained(tmp_path / "run", [rs.to_tensorboard(tmp_path / "logs")])
        found = EventAccumulator(str(tmp_path / "logs")).Reload()

    losses = [(event.step, event.value) for event in found.Scalars("rheoscope/loss")]
    expected = recording.table("steps").query("is_sampled")
    assert losses == [
        (step, pytest.approx(loss)) for step, loss in zip(expected["step"], expected["loss"], strict=True)
    ]
    (told,) = found.Tensors("rheoscope/report/text_summary")
    assert told.tensor_proto.string_val[0].decode() == str(tmp_path / "run" / "report.html")
    assert "<html" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_mlflow_keeps_metrics_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

        mlflow.set_tracking_uri((tmp_path / "store").as_uri())
        recording = trained(tmp_path / "run", [rs.to_mlflow()])
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("rheoscope").experiment_id])
        history = client.get_metric_history(run.info.run_id, "rheoscope/loss")
        (artifact,) = client.list_artifacts(run.info.run_id, "rheoscope")

    expected = recording.table("steps").query("is_sampled")
    assert [(each.step, each.value) for each in history] == list(zip(expected["step"], expected["loss"], strict=True))
    assert artifact.path == "rheoscope/report.html"
    assert run.info.status == "FINISHED"
    assert run.data.tags["rheoscope.model"] == "NanoGPT"


def test_wandb_gets_scalars_over_their_own_step_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: list[dict[str, Any]] = []
    artifacts: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = wandb.init(mode="offline", dir=tmp_path, project="ours")
        log, log_artifact = run.log, run.log_artifact
        monkeypatch.setattr(run, "log", lambda values, **more: (logged.append(values), log(values, **more)))
        monkeypatch.setattr(run, "log_artifact", lambda found: (artifacts.append(found), log_artifact(found)))
        recording = trained(tmp_path / "run", [rs.to_wandb(run)])
        run.finish()

    expected = recording.table("steps").query("is_sampled")
    assert [each["rheoscope/step"] for each in logged] == expected["step"].tolist()
    assert [each["rheoscope/loss"] for each in logged] == expected["loss"].tolist()
    assert [each.type for each in artifacts] == ["report"]
    assert list(artifacts[0].manifest.entries) == ["report.html"]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
