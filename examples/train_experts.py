"""Train a mixture of experts under probes: who gets how many tokens. Run it: python examples/train_experts.py."""

import rheoscope as rs
import torch
from transformers import MixtralConfig, MixtralForCausalLM

STEPS, WORDS = 40, 256


def main() -> None:
    """Count by one with eight experts a block, two of them for each token."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        output_router_logits=True,
    )
    model = MixtralForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with rs.attach(model, optimizer, every=10, label="Mixtral") as probe:
        for _ in range(STEPS):
            tokens = (torch.randint(WORDS, (8, 1)) + torch.arange(32)) % WORDS
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    experts = probe.recording.table("experts")
    last = experts[(experts["step"] == experts["step"].max()) & (experts["expert"] >= 0)]
    print(last.groupby("block")["load"].max().rename("load of the busiest expert").to_string())
    print("Report:", rs.write_report(probe.recording, "experts.html"))


if __name__ == "__main__":
    main()
