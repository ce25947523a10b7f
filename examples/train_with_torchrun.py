"""Put probes on a model that several processes train. Run it: torchrun --nproc-per-node 2 examples/train_with_torchrun.py."""

import rheoscope as rs
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS, SEQUENCES, LENGTH, WORDS, WIDTH = 40, 8, 32, 100, 64


class Model(nn.Module):
    """A causal transformer of PyTorch's own layers."""

    def __init__(self) -> None:
        """Build it with pre-norm blocks."""
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=256, batch_first=True, norm_first=True)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, num_layers=6, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of every token, (batch, position, vocabulary)."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.encoder(self.embedding(tokens), mask=mask, is_causal=True))


def main() -> None:
    """Train on a toy task (count on by one) as one of the ranks; the first writes the recording and the report of all."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(Model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.Generator().manual_seed(rank)  # every rank has data of its own
    # Every rank attaches: what they measure is joined, and the first rank writes it.
    with rs.attach(model, optimizer, every=5, label=f"{dist.get_world_size()} ranks") as probe:
        for _ in range(STEPS):
            tokens = (torch.randint(WORDS, (SEQUENCES, 1), generator=data) + torch.arange(LENGTH + 1)) % WORDS
            logits = model(tokens[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss, n_tokens=tokens[:, 1:].numel())
    if rank == 0:
        for finding in rs.diagnose(probe.recording):
            print(f"{finding.severity:8} {finding.sentence}")
        print("Report:", rs.write_report(probe.recording, "ranks.html"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
