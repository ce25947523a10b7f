"""Fine-tune a Llama with LoRA under probes: frozen weights, small adapters. Run it: python examples/tune_llama_with_lora.py."""

import rheoscope as rs
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

STEPS, WORDS = 40, 256


def main() -> None:
    """Tune random weights on counting by one; only what the adapters receive is a gradient."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=176, num_hidden_layers=6, num_attention_heads=4
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    with rs.attach(model, optimizer, every=10, label="Llama with LoRA") as probe:
        for _ in range(STEPS):
            tokens = (torch.randint(WORDS, (8, 1)) + torch.arange(32)) % WORDS
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    rows = probe.recording.table("parameters", steps=0)
    print(rows["gradient_state"].value_counts().to_string())
    print("Report:", rs.write_report(probe.recording, "lora.html"))


if __name__ == "__main__":
    main()
