"""Set OLMo 2, whose norms stand behind its branches, beside Llama. Run it: python examples/compare_olmo2_with_llama.py."""

import rheoscope as rs
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

STEPS, WORDS = 30, 256
SIZES = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 176}
SIZES |= {"num_hidden_layers": 6, "num_attention_heads": 4, "pad_token_id": None, "eos_token_id": None}


def trained(model: torch.nn.Module, label: str) -> rs.Recording:
    """Train on counting by one, and return what the probes recorded."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    numbers = torch.Generator().manual_seed(0)
    with rs.attach(model, optimizer, every=10, label=label) as probe:
        for _ in range(STEPS):
            tokens = (torch.randint(WORDS, (8, 1), generator=numbers) + torch.arange(32)) % WORDS
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    return probe.recording


def main() -> None:
    """Train both on the same data and write one page."""
    torch.manual_seed(0)
    comparison = rs.compare(
        {
            "OLMo 2": trained(Olmo2ForCausalLM(Olmo2Config(**SIZES)), "OLMo 2"),
            "Llama": trained(LlamaForCausalLM(LlamaConfig(**SIZES)), "Llama"),
        }
    )
    print(comparison.summary()[["label", "placement", "loss_last", "gradient_ratio"]].to_string(index=False))
    print("Report:", rs.write_report(comparison, "olmo2_and_llama.html"))


if __name__ == "__main__":
    main()
