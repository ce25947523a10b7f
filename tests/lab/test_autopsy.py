"""A run without probes is told from its checkpoints: which block drifted, since when, beside the logged losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rheoscope.command_line import app
from rheoscope.diagnostics.autopsy import Autopsy
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.autopsy import autopsy
from rheoscope.lab.loss_log import read_log
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.errors import LabError
from safetensors.torch import save_file
from typer.testing import CliRunner

TOKENS = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
BATCH = (TOKENS[:, :-1], TOKENS[:, 1:])
LOG = "step,loss,grad_norm\n0,5.5,1.0\n5,5.0,1.1\n10,4.5,1.2\n20,4.0,nan\n"


def model() -> ReferenceTransformer:
    return ReferenceTransformer(Architecture(n_blocks=5, width=16, n_heads=2, context=8), seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints, in which the MLP of block 2 grows by 1, 4 and 8, and a log."""
    place = tmp_path_factory.mktemp("run")
    for step, factor in ((0, 1.0), (10, 4.0), (20, 8.0)):
        built = model()
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                if ".2." in name and "mlp" in name and parameter.dim() == 2:
                    parameter.mul_(factor)
        save_file(
            {name: tensor.clone() for name, tensor in built.state_dict().items()}, place / f"step-{step}.safetensors"
        )
    (place / "log.csv").write_text(LOG)
    (place / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": 5, "loss": 5.0, "grad_norm": 1.1}, {"step": 5, "eval_loss": 6.0}]})
    )
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> Autopsy:
    paths = sorted(folder.glob("step-*"), reverse=True)
    return autopsy(paths, model(), BATCH, log=read_log(folder / "log.csv"))


def test_checkpoints_are_ordered_by_the_step_in_their_names(found: Autopsy) -> None:
    assert list(found.names.items()) == [(step, f"step-{step}.safetensors") for step in (0, 10, 20)]


def test_the_block_that_drifted_stands_first_with_factor_and_time(found: Autopsy) -> None:
    row = found.drift[found.drift["quantity"] == "weight RMS"].iloc[0]

    assert (row["block"], row["branch"], row["is_apart"]) == (2, "mlp", True)
    assert row["ratio"] == pytest.approx(8.0, rel=1e-5)
    assert row["siblings"] == pytest.approx(1.0, rel=1e-5)
    assert row["half_at"] == 10
    assert not found.drift[(found.drift["quantity"] == "weight RMS") & found.drift["is_apart"]]["block"].ne(2).any()


def test_a_finding_is_told_from_the_checkpoint_on_in_which_it_first_is(found: Autopsy) -> None:
    rows = found.seen[(found.seen["code"] == "weight-scale") & (found.seen["block"] == 2)]

    assert found.diagnoses[0].worst != "warning"
    assert rows[["first_step", "last_step", "n_checkpoints"]].to_numpy().tolist() == [[10, 20, 2]]


def test_the_series_lays_the_log_beside_the_check_ups(found: Autopsy) -> None:
    steps = found.series.table("steps").set_index("step")
    states = found.series.table("activations", steps=20)

    assert steps["loss"].tolist() == [5.5, 5.0, 4.5, 4.0]
    assert steps["is_sampled"].tolist() == [True, False, True, True]
    assert states["rms"].tolist() == found.recordings[20].table("activations")["rms"].tolist()


@pytest.mark.parametrize("name", ["log.csv", "trainer_state.json", "events"])
def test_every_form_of_a_log_is_read(name: str, folder: Path) -> None:
    if name == "events":
        writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(folder / name)
        writer.add_scalar("train/loss", 5.0, 5)
        writer.add_scalar("train/grad_norm", 1.1, 5)
        writer.close()
    rows = read_log(folder / name).set_index("step")

    assert rows.loc[5].round(5).tolist() == [5.0, 1.1]


def test_a_log_without_losses_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("epoch,accuracy\n1,0.5\n")

    with pytest.raises(LabError, match="got accuracy, epoch"):
        read_log(tmp_path / "log.csv")


def test_the_command_shows_what_drifted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "mine.py").write_text(
        "from rheoscope.lab.architecture import Architecture\nfrom rheoscope.lab.transformer import ReferenceTransformer\n"
        "import torch\ndef make():\n    tokens = torch.zeros(2, 8, dtype=torch.int64)\n    return ReferenceTransformer("
        "Architecture(n_blocks=5, width=16, n_heads=2, context=8), seed=1), (tokens, tokens)\n"
    )
    names = ["step-0.safetensors", "step-20.safetensors"]
    result = CliRunner().invoke(app, ["autopsy", *names, "--model", "mine:make", "--log", "log.csv"])

    assert result.exit_code == 0
    assert "block 2 mlp" in " ".join(result.output.split())
    assert "weight RMS" in result.output
