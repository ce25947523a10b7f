"""Train a small GPT-2 of Hugging Face's on real text under probes. Run it: python examples/train_gpt2.py."""

import argparse
from pathlib import Path

import rheoscope as rs
import torch
from transformers import GPT2Config, GPT2LMHeadModel

STEPS, SEQUENCES, LENGTH = 60, 8, 64


def main() -> None:
    """Predict the next byte of Python's own argparse, and write the report."""
    torch.manual_seed(0)
    text = torch.tensor(list(Path(argparse.__file__).read_bytes()))
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=6, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with rs.attach(model, optimizer, every=10, label="GPT-2") as probe:
        for _ in range(STEPS):
            starts = torch.randint(len(text) - LENGTH, (SEQUENCES,)).tolist()
            tokens = torch.stack([text[start : start + LENGTH] for start in starts])
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss, n_tokens=tokens.numel())
    print("Report:", rs.write_report(probe.recording, "gpt2.html"))


if __name__ == "__main__":
    main()
