"""Train a GPT-2 with the Trainer of Hugging Face: accumulation, clipping, evaluation on the way."""

import hashlib
import json
import os
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

out = sys.argv[1]


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 96

    def __getitem__(self, i):
        ids = torch.randint(64, (12,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


set_seed(0)
config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
arguments = TrainingArguments(
    output_dir=os.path.join(out, "hf"),
    max_steps=12,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    max_grad_norm=0.5,
    learning_rate=1e-3,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=6,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
)
trainer = Trainer(
    model=model, args=arguments, train_dataset=Tokens(), eval_dataset=torch.utils.data.Subset(Tokens(), range(8))
)
trainer.train()
steps = [
    {"loss": row["loss"], "gradient_norm": row["grad_norm"], "lr": row["learning_rate"]}
    for row in trainer.state.log_history
    if "grad_norm" in row
]
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
with open(os.path.join(out, "log.json"), "w") as file:
    json.dump({"steps": steps, "weights": hashlib.sha256(weights).hexdigest()}, file)
