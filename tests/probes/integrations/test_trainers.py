"""Trainers of other libraries are recorded as they log, and are afterwards as they were before."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rheoscope as rs
import torch
from oracles import NanoGPT, cross_entropy, ids
from rheoscope.probes.errors import ProbeError, RecordingError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

os.environ["ACCELERATE_USE_CPU"] = "1"


class Rows(Dataset[dict[str, Tensor]]):
    """Token rows as Hugging Face's Trainer wants them."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = ids(seed=index)[0]
        return {"ids": row, "labels": row}


class WithLoss(nn.Module):
    """A decoder that returns its loss; NaN for the batches named."""

    def __init__(self, ill: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.inner, self.ill, self.n = NanoGPT(), ill, 0

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        loss = self.inner(ids, targets=labels)
        if torch.is_grad_enabled() and self.training:
            loss = loss * math.nan if self.n in self.ill else loss
            self.n += 1
        return {"loss": loss}


@pytest.fixture
def trainer_of(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    from transformers import Trainer, TrainingArguments

    def make(model: nn.Module, kind: type = Trainer, **more: Any) -> Any:
        options = {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "max_grad_norm": 0.1,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "label_names": ["labels"],
            "dataloader_pin_memory": False,
        }
        arguments = TrainingArguments(output_dir=str(tmp_path / "out"), **(options | more))
        return kind(model=model, args=arguments, train_dataset=Rows())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield make


def columns(recording: rs.Recording, *names: str) -> list[list[float]]:
    steps = recording.table("steps")
    return [list(steps[name]) for name in names]


def test_a_trainer_is_recorded_as_it_logs_and_left_as_it_was(tmp_path: Path, trainer_of: Callable[..., Any]) -> None:
    trainer = trainer_of(WithLoss(), gradient_accumulation_steps=2)
    callbacks = [type(each) for each in trainer.callback_handler.callbacks]
    attached = rs.attach_trainer(trainer, tmp_path / "run", every=2, label="ours")

    trainer.train()

    logged = [row for row in trainer.state.log_history if "grad_norm" in row]
    norms, losses, micro_batches = columns(attached.recording, "unclipped_gradient_norm", "loss", "micro_batches")
    assert norms == pytest.approx([row["grad_norm"] for row in logged], rel=1e-5)
    assert losses == pytest.approx([row["loss"] for row in logged], rel=1e-5)
    assert micro_batches[::2] == [2, 2]
    assert attached.recording.anatomy.n_blocks == 2
    assert "train" not in vars(trainer)
    assert "_clip_grad_norm" not in vars(trainer)
    assert [type(each) for each in trainer.callback_handler.callbacks] == callbacks


def test_a_loss_that_the_trainer_hides_is_recorded_and_said(tmp_path: Path, trainer_of: Callable[..., Any]) -> None:
    trainer = trainer_of(WithLoss(ill=(2,)))
    attached = rs.attach_trainer(trainer, tmp_path / "run")

    trainer.train()

    logged = [row["loss"] for row in trainer.state.log_history if "grad_norm" in row]
    (losses,) = columns(attached.recording, "loss")
    assert math.isfinite(logged[2])
    assert math.isnan(losses[2])
    events = attached.recording.table("events").set_index("kind")["sentence"]
    assert "logging_nan_inf_filter" in events["hidden_loss"]


def test_a_trainer_that_clips_by_itself_tells_its_norm(tmp_path: Path, trainer_of: Callable[..., Any]) -> None:
    from transformers import Trainer

    class Own(Trainer):
        def _clip_grad_norm(self, model: nn.Module) -> Tensor:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.cat([each.flatten() for each in gradients]).norm()
            for each in gradients:
                each.mul_(0.1 / norm)
            return norm

    trainer = trainer_of(WithLoss(), kind=Own)
    attached = rs.attach_trainer(trainer, tmp_path / "run", every=1)

    trainer.train()

    unclipped, after = columns(attached.recording, "unclipped_gradient_norm", "gradient_norm")
    assert unclipped == pytest.approx(
        [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row], rel=1e-5
    )
    assert after == pytest.approx([0.1] * 4, rel=1e-5)


def test_training_that_fails_closes_the_recording_and_raises_what_it_raised(
    tmp_path: Path, trainer_of: Callable[..., Any]
) -> None:
    class Failing(WithLoss):
        def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            if self.n == 2:
                raise KeyError("lost")
            return super().forward(ids, labels)

    trainer = trainer_of(Failing())
    attached = rs.attach_trainer(trainer, tmp_path / "run")

    with pytest.raises(KeyError, match="lost"):
        trainer.train()

    assert len(attached.recording.table("steps")) == 2
    assert "lost" in attached.recording.table("events").set_index("kind")["sentence"]["interrupted"]
    assert "train" not in vars(trainer)


def test_training_that_goes_on_from_a_checkpoint_goes_on_with_its_recording(
    tmp_path: Path, trainer_of: Callable[..., Any]
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    first = trainer_of(WithLoss(), **saving)
    rs.attach_trainer(first, tmp_path / "run", every=1)
    first.train()
    second = trainer_of(WithLoss(), **saving | {"max_steps": 5})
    attached = rs.attach_trainer(second, tmp_path / "run", every=1)

    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))

    assert columns(attached.recording, "step") == [[0, 1, 2, 3, 4]]
    assert attached.recording.manifest["resumed_at"] == [2]


def test_what_is_no_trainer_is_refused_and_a_recording_before_training_too(
    tmp_path: Path, trainer_of: Callable[..., Any]
) -> None:
    with pytest.raises(ProbeError, match=r"transformers\.Trainer, got NanoGPT"):
        rs.attach_trainer(NanoGPT())

    with pytest.raises(RecordingError, match="after training"):
        _ = rs.attach_trainer(trainer_of(WithLoss()), tmp_path / "run").recording


def lit(optimizers: int = 1) -> Any:
    """Return a LightningModule that notes the norm of its gradient before clipping."""
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.norms, self.losses = NanoGPT(), [], []
            self.automatic_optimization = optimizers == 1

        def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:
            loss: Tensor = cross_entropy(self.model(batch[0]), batch[0])
            self.losses.append(loss.item())
            if self.automatic_optimization:
                return loss
            self.manual_backward(loss)
            for each in self.optimizers():
                each.step()
                each.zero_grad()
            return None

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            gradients = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
            self.norms.append(torch.cat(gradients).norm().item())

        def configure_optimizers(self) -> Any:
            matrices = [p for p in self.parameters() if p.dim() > 1]
            others = [p for p in self.parameters() if p.dim() < 2]
            if optimizers == 1:
                return torch.optim.AdamW(self.parameters(), lr=1e-3)
            return [torch.optim.SGD(matrices, lr=0.1), torch.optim.AdamW(others)]

    return Lit()


def fit(module: Any, callback: Any, folder: Path, **more: Any) -> Any:
    """Fit a module to three batches."""
    import lightning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=3 * (1 if module.automatic_optimization else 2),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[callback],
            **more,
        )
        data = TensorDataset(torch.cat([ids(seed=seed) for seed in range(3)]))
        trainer.fit(module, DataLoader(data, batch_size=len(ids())))
    return trainer


def test_lightning_is_recorded_with_the_norm_before_clipping(tmp_path: Path) -> None:
    module, callback = lit(), rs.RheoscopeCallback(tmp_path / "run", every=1)

    fit(module, callback, tmp_path, gradient_clip_val=0.1)

    unclipped, after, losses = columns(callback.recording, "unclipped_gradient_norm", "gradient_norm", "loss")
    assert unclipped == pytest.approx(module.norms, rel=1e-5)
    assert after == pytest.approx([0.1] * 3, rel=1e-4)
    assert losses == pytest.approx(module.losses, rel=1e-5)


def test_two_optimizers_that_a_lightning_module_steps_itself_close_one_step(tmp_path: Path) -> None:
    module, callback = lit(optimizers=2), rs.RheoscopeCallback(tmp_path / "run", every=1)

    fit(module, callback, tmp_path)

    losses, micro_batches = columns(callback.recording, "loss", "micro_batches")
    assert losses == pytest.approx(module.losses, rel=1e-5)
    assert micro_batches == [1, 1, 1]


def test_a_fit_that_fails_and_one_that_begins_anew_have_a_recording_each(tmp_path: Path) -> None:
    callback = rs.RheoscopeCallback(tmp_path / "run", every=1)
    failing = lit()
    failing.on_train_batch_end = lambda *_: (_ for _ in ()).throw(KeyError("lost"))
    with pytest.raises(KeyError):
        fit(failing, callback, tmp_path)
    first = callback.recording

    fit(lit(), callback, tmp_path)

    assert len(first.table("steps")) == 1
    assert "lost" in first.table("events").set_index("kind")["sentence"]["interrupted"]
    assert len(callback.recording.table("steps")) == 3
    assert rs.Recording.load(tmp_path / "run-2").manifest["status"] == "closed"


def test_an_accelerate_loop_is_recorded_by_its_tracker(tmp_path: Path) -> None:
    from accelerate import Accelerator

    tracker = rs.RheoscopeTracker(tmp_path / "run", every=1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, log_with=[tracker])
    accelerator.init_trackers("ours", config={"lr": 1e-3})
    model = NanoGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = DataLoader(TensorDataset(torch.cat([ids(seed=seed) for seed in range(4)])), batch_size=len(ids()))
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    norms = []
    for (tokens,) in data:
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(tokens), tokens))
            if accelerator.sync_gradients:
                norms.append(accelerator.clip_grad_norm_(model.parameters(), 0.1).item())
            optimizer.step()
            optimizer.zero_grad()
        accelerator.log({"anything": 1.0})
    accelerator.end_training()

    unclipped, micro_batches = columns(tracker.recording, "unclipped_gradient_norm", "micro_batches")
    assert unclipped == pytest.approx(norms, rel=1e-5)
    assert micro_batches == [2, 2]
    assert accelerator.get_tracker("rheoscope", unwrap=True).recordings == tracker.recordings


def test_whatever_trains_inside_a_with_statement_is_recorded(tmp_path: Path) -> None:
    model = NanoGPT()
    optimizer = torch.optim.AdamW(model.parameters())
    losses = []

    with rs.record(tmp_path / "run", every=1, label="ours") as run:
        for seed in range(3):
            loss = cross_entropy(model(ids(seed=seed)), ids(seed=seed))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())

    assert columns(run.recording, "loss", "micro_batches") == [pytest.approx(losses), [1, 1, 1]]
    assert run.recording.manifest["label"] == "ours: NanoGPT"


def test_a_with_statement_in_which_nothing_trains_has_no_recording(tmp_path: Path) -> None:
    with rs.record(tmp_path / "run") as run:
        NanoGPT()(ids())

    assert run.recordings == ()
    with pytest.raises(RecordingError, match="no optimizer of torch"):
        _ = run.recording
