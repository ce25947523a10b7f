"""Put probes on the stages of a pipeline. Run it: torchrun --nproc-per-node 2 examples/train_a_pipeline.py."""

import rheoscope as rs
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

STEPS, MICRO_BATCHES, SEQUENCES, LENGTH, WORDS, WIDTH, BLOCKS = 20, 4, 8, 32, 100, 64, 6


class Part(nn.Module):
    """One stage: its share of the blocks, behind the embedding or before the head where it is the first or the last."""

    def __init__(self, index: int, n: int) -> None:
        """Build the stage's own layers; the same seed everywhere would make stages alike."""
        super().__init__()
        torch.manual_seed(index)
        self.embedding = nn.Embedding(WORDS, WIDTH) if index == 0 else nn.Identity()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 256, 0.0, batch_first=True, norm_first=True)
            for _ in range(BLOCKS // n)
        )
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)) if index == n - 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the next stage reads, or logits of every token."""
        x = self.embedding(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x)


def main() -> None:
    """Train on a toy task (count on by one); the first stage joins the recordings of all when it closes."""
    dist.init_process_group("gloo")
    index, n = dist.get_rank(), dist.get_world_size()
    model = Part(index, n)
    stage = PipelineStage(model, index, n, torch.device("cpu"))
    schedule = Schedule1F1B(
        stage, MICRO_BATCHES, lambda y, t: nn.functional.cross_entropy(y.flatten(0, 1), t.flatten())
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.Generator().manual_seed(0)
    # Every stage attaches, after it was made and with the same folder.
    with rs.attach(model, optimizer, every=5, folder="pipeline-run", label=f"{n} stages") as probe:
        for _ in range(STEPS):
            tokens = (torch.randint(WORDS, (SEQUENCES, 1), generator=data) + torch.arange(LENGTH + 1)) % WORDS
            losses: list[torch.Tensor] = []
            first, last = [tokens[:, :-1]] if index == 0 else [], tokens[:, 1:] if index == n - 1 else None
            schedule.step(*first, target=last, losses=losses)
            optimizer.step()
            optimizer.zero_grad()
            probe.step(sum(losses) / len(losses) if losses else None, n_tokens=tokens[:, 1:].numel())
    if index == 0:
        print("Report:", rs.write_report(probe.recording, "pipeline.html"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
