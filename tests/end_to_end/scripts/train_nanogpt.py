"""Train in nanoGPT's manner: accumulation, autocast, a gradient scaler, clipping, evaluation before the first step."""

import hashlib
import json
import math
import os
import sys

import torch
from torch import nn
from torch.nn import functional as F

out, compiles = sys.argv[1], "--compile" in sys.argv
STEPS, ACCUMULATION, EVAL_EVERY, LENGTH, VOCABULARY = 12, 2, 6, 16, 64


def main():
    torch.manual_seed(1337)

    class Attention(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.c_attn, self.c_proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
            self.resid_dropout = nn.Dropout(0.1)

        def forward(self, x):
            b, t, c = x.size()
            q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.c_attn(x).split(c, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(b, t, c)))

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class GPT(nn.Module):
        def __init__(self, width=32, heads=2, depth=3):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
            self.h = nn.ModuleList(Block(width, heads) for _ in range(depth))
            self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
            self.wte.weight = self.lm_head.weight

        def forward(self, idx, targets=None):
            x = self.wte(idx) + self.wpe(torch.arange(idx.size(1)))
            for block in self.h:
                x = block(x)
            logits = self.lm_head(self.ln_f(x))
            return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

        def configure_optimizers(self):
            decayed = [p for p in self.parameters() if p.dim() >= 2]
            others = [p for p in self.parameters() if p.dim() < 2]
            groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
            return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

    def get_batch():
        x = torch.randint(VOCABULARY, (4, LENGTH + 1))
        return x[:, :-1], x[:, 1:]

    @torch.no_grad()
    def estimate_loss():
        model.eval()
        losses = [model(*get_batch())[1].item() for _ in range(2)]
        model.train()
        return sum(losses) / len(losses)

    model = GPT()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = model.configure_optimizers()
    if compiles:
        model = torch.compile(model, backend="aot_eager")
    log = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        if step % EVAL_EVERY == 0:
            print(f"step {step}: val loss {estimate_loss():.4f}")
        total = 0.0
        for _ in range(ACCUMULATION):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                _, loss = model(*get_batch())
                loss = loss / ACCUMULATION
            total += loss.item()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        log.append({"loss": total, "gradient_norm": norm.item(), "lr": optimizer.param_groups[0]["lr"]})
    print(f"last loss {total:.6f}")
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    with open(os.path.join(out, "log.json"), "w") as file:
        json.dump({"steps": log, "weights": hashlib.sha256(weights).hexdigest()}, file)


main()
