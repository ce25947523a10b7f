"""Train a BERT, post-norm and not causal, on masked tokens under probes. Run it: python examples/train_bert.py."""

import rheoscope as rs
import torch
from transformers import BertConfig, BertForMaskedLM

STEPS, WORDS, MASK = 40, 256, 0


def main() -> None:
    """Guess masked members of a row of counting numbers; padding is left out of every statistic."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4
    )
    model = BertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with rs.attach(model, optimizer, every=10, label="BERT") as probe:
        for _ in range(STEPS):
            tokens = 1 + (torch.randint(WORDS - 1, (8, 1)) + torch.arange(32)) % (WORDS - 1)
            there = (torch.arange(32) < torch.randint(16, 33, (8, 1))).long()
            hidden = (torch.rand(8, 32) < 0.15) & there.bool()
            labels = tokens.masked_fill(~hidden, -100)
            loss = model(input_ids=tokens.masked_fill(hidden, MASK), attention_mask=there, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    for finding in rs.diagnose(probe.recording):
        print(f"{finding.severity:8} {finding.sentence}")
    print("Report:", rs.write_report(probe.recording, "bert.html"))


if __name__ == "__main__":
    main()
