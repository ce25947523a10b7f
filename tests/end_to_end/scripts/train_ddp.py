"""Train on several processes with DistributedDataParallel, each on data of its own, under torchrun."""

import hashlib
import json
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

out = sys.argv[1]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True, dropout=0.0)
        self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)
        self.blocks = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(32), enable_nested_tensor=False)

    def forward(self, tokens):
        return self.head(self.blocks(self.embedding(tokens)))


dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = DistributedDataParallel(Encoder())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
data = torch.Generator().manual_seed(rank)
log = []
for step in range(12):
    tokens = torch.randint(64, (4, 12), generator=data)
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    log.append({"gradient_norm": norm.item(), "loss": mean.item() / dist.get_world_size(), "lr": 1e-3})
if rank == 0:
    print("last loss", log[-1]["loss"])
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    with open(os.path.join(out, "log.json"), "w") as file:
        json.dump({"steps": log, "weights": hashlib.sha256(weights).hexdigest()}, file)
dist.destroy_process_group()
