"""Train a T5, an encoder and a decoder with a stream each, under probes. Run it: python examples/train_t5.py."""

import rheoscope as rs
import torch
from transformers import T5Config, T5ForConditionalGeneration

STEPS, WORDS = 40, 128


def main() -> None:
    """Write a row of tokens backwards; the report shows both stacks, and cross-attention as a branch of the second."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=WORDS, d_model=64, d_kv=16, d_ff=128, num_layers=4, num_heads=4, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with rs.attach(model, optimizer, every=10, label="T5") as probe:
        for _ in range(STEPS):
            tokens = torch.randint(2, WORDS, (8, 16))
            loss = model(input_ids=tokens, labels=tokens.flip(1)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    for stack in probe.recording.anatomy.stacks:
        print(f"stack {stack.index}: {stack.n_blocks} blocks, {stack.placement}-norm")
    print("Report:", rs.write_report(probe.recording, "t5.html"))


if __name__ == "__main__":
    main()
