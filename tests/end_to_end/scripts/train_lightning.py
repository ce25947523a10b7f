"""Train with Lightning's Trainer: accumulation, clipping, validation, and a module that logs its gradient norm."""

import hashlib
import json
import os
import sys

import lightning as L
import torch
from torch import nn

out = sys.argv[1]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True, dropout=0.1)
        self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)
        self.blocks = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(32), enable_nested_tensor=False)

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)))


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.steps = Encoder(), []

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.model(batch[0]).flatten(0, 1), batch[0].flatten())
        self.log("train_loss", loss)
        self.last_loss = loss.item()
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self.model(batch[0]).flatten(0, 1), batch[0].flatten()))

    def on_before_optimizer_step(self, optimizer):
        norm = torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None]).norm()
        self.steps.append({"gradient_norm": norm.item(), "lr": optimizer.param_groups[0]["lr"]})

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


L.seed_everything(0, verbose=False)
tokens = torch.randint(64, (96, 12), generator=torch.Generator().manual_seed(0))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens), batch_size=4)
lit = Lit()
trainer = L.Trainer(
    max_steps=12,
    accelerator="cpu",
    accumulate_grad_batches=2,
    gradient_clip_val=0.5,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    limit_val_batches=2,
    default_root_dir=out,
)
trainer.fit(lit, loader, loader)
print("steps", trainer.global_step)
weights = b"".join(p.detach().numpy().tobytes() for p in lit.parameters())
with open(os.path.join(out, "log.json"), "w") as file:
    json.dump({"steps": lit.steps, "weights": hashlib.sha256(weights).hexdigest()}, file)
