"""Put probes on a sharded model (FSDP2). Run it: torchrun --nproc-per-node 2 examples/train_with_fsdp2.py."""

import rheoscope as rs
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import GPT2Config, GPT2LMHeadModel

STEPS, SEQUENCES, LENGTH, WORDS = 40, 8, 32, 256


def main() -> None:
    """Count on by one as one of the ranks; each holds a part of every weight, and the first writes the recording of all."""
    dist.init_process_group("gloo")
    rank, n = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=64, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    mesh = init_device_mesh("cpu", (n,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.Generator().manual_seed(rank)  # every rank has data of its own
    # After sharding, on every rank: norms are those of the whole gradient and the whole weight.
    with rs.attach(model, optimizer, every=5, label=f"FSDP2, {n} ranks") as probe:
        for _ in range(STEPS):
            tokens = (torch.randint(WORDS, (SEQUENCES, 1), generator=data) + torch.arange(LENGTH)) % WORDS
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss, n_tokens=tokens.numel())
    if rank == 0:
        print("Report:", rs.write_report(probe.recording, "fsdp2.html"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
