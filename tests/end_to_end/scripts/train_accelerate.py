"""Train with Accelerate: its accumulation, its clipping, a scheduler, an encoder with a classifier."""

import hashlib
import json
import os
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

out = sys.argv[1]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.1)
        self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 8)
        self.blocks = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, tokens, labels):
        logits = self.head(self.blocks(self.embedding(tokens)).mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


set_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
data = torch.utils.data.TensorDataset(torch.randint(64, (96, 12)), torch.randint(8, (96,)))
model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 12)
loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
log, losses = [], []
for tokens, labels in loader:
    with accelerator.accumulate(model):
        loss = model(tokens=tokens, labels=labels)["loss"]
        losses.append(loss.item())
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(model.parameters(), 0.5)
            log.append(
                {
                    "gradient_norm": norm.item(),
                    "loss": sum(losses) / len(losses),
                    "lr": optimizer.param_groups[0]["lr"],
                }
            )
            losses = []
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
accelerator.print("steps", len(log))
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
with open(os.path.join(out, "log.json"), "w") as file:
    json.dump({"steps": log, "weights": hashlib.sha256(weights).hexdigest()}, file)
