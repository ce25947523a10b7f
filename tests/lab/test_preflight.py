"""Go or no-go before a long run: sound models may go, each fault is named on its own line."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rheoscope.command_line import app
from rheoscope.diagnostics.preflight import Preflight
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.preflight import preflight
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.reports.preflight_screen import show_preflight
from rich.console import Console
from typer.testing import CliRunner

TOKENS = torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(0))
BATCH = (TOKENS[:, :-1], TOKENS[:, 1:])


def model(n_blocks: int = 5) -> ReferenceTransformer:
    return ReferenceTransformer(Architecture(n_blocks=n_blocks, width=16, n_heads=2, context=12), seed=0)


def marks(found: Preflight) -> dict[str, str]:
    return {line.what: line.mark for line in found.lines}


@pytest.fixture(scope="module")
def sound() -> Preflight:
    return preflight(model(), BATCH, lr=1e-3, n_steps=4)


def test_a_sound_model_may_go(sound: Preflight) -> None:
    out = io.StringIO()
    show_preflight(sound, Console(file=out, width=110))

    assert sound.verdict == "GO"
    assert "stop" not in marks(sound).values()
    assert len(out.getvalue().splitlines()) <= 24, "one screen"
    assert "ln 256" in out.getvalue()


def test_the_first_loss_is_held_against_that_of_its_own_logits(sound: Preflight) -> None:
    (line,) = (line for line in sound.lines if line.what == "initial loss")
    logits = model()(*BATCH).logits
    expected = math.log(256) + float(logits.detach().std()) ** 2 / 2

    assert line.expected.startswith(f"{expected:.4g}")
    assert line.mark == "ok"


def test_the_first_steps_are_those_of_training_without_probes(sound: Preflight) -> None:
    plain = model().train()
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-3, (0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(4):
        loss = plain(*BATCH).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))

    assert sound.first_steps.table("steps")["loss"].tolist() == losses


def test_steps_that_are_far_too_long_ask_for_a_look_and_a_diverging_run_stops() -> None:
    far = preflight(model(2), BATCH, lr=3.0, n_steps=3)
    ill = model(2)
    with torch.no_grad():
        next(ill.parameters()).fill_(math.inf)
    broken = preflight(ill, BATCH, n_steps=3)

    assert marks(far)["update / weight, 3 steps"] == "look"
    assert broken.verdict == "NO-GO"
    assert marks(broken)["initial loss"] == "stop"


def test_an_optimizer_that_moves_nothing_of_the_blocks_stops() -> None:
    built = model(2)
    optimizer = torch.optim.SGD([list(built.parameters())[-1]], lr=0.1)

    assert marks(preflight(built, BATCH, optimizer, n_steps=3))["updates"] == "stop"


def test_the_command_says_no_go_of_a_model_that_is_ill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ill_model.py").write_text(
        "import torch\nfrom rheoscope.lab.architecture import Architecture\n"
        "from rheoscope.lab.transformer import ReferenceTransformer\ndef make():\n"
        "    model = ReferenceTransformer(Architecture(n_blocks=2, width=16, n_heads=2, context=8), seed=0)\n"
        "    tokens = torch.zeros(2, 8, dtype=torch.int64)\n"
        "    frozen = torch.optim.SGD([list(model.parameters())[-1]], lr=0.1)\n"
        "    return model, (tokens, tokens), frozen, lambda output, batch: output.loss\n"
    )
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(app, ["preflight", "ill_model:make", "--json", "--steps", "3"])

    assert result.exit_code == 1
    value = json.loads(result.stdout)
    assert value["verdict"] == "NO-GO"
    assert [line["what"] for line in value["lines"] if line["mark"] == "stop"] == ["updates"]
