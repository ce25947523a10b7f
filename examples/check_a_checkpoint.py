"""Examine a model as it stands, without training it. Run it: python examples/check_a_checkpoint.py."""

import rheoscope as rs
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> None:
    """Examine a small Llama with random weights: put your own model and batch in its place."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=344, num_hidden_layers=8, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    tokens = torch.randint(512, (2, 64))
    recording = rs.examine(model, {"input_ids": tokens, "labels": tokens})
    print(recording.anatomy.to_frame()[["block", "kind", "placement", "norm_kind", "ledger_error"]].to_string())
    print("Report:", rs.write_report(recording, "check_up.html"))


if __name__ == "__main__":
    main()
