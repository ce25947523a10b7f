"""Put probes on a model of your own: any module, any loop. Run it: python examples/own_model.py."""

import rheoscope as rs
import torch
from torch import nn


class Model(nn.Module):
    """A post-norm encoder with a head, as one writes it in an afternoon."""

    def __init__(self) -> None:
        """Build it with PyTorch's own layers."""
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, nhead=4, dim_feedforward=256, batch_first=True)
        self.embedding = nn.Embedding(100, 64)
        self.encoder = nn.TransformerEncoder(layer, num_layers=8)
        self.head = nn.Linear(64, 100)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of every token, (batch, position, vocabulary)."""
        return self.head(self.encoder(self.embedding(tokens)))


def main() -> None:
    """Train on a toy task (say the token before) and write the report."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with rs.attach(model, optimizer, every=5, label="my own encoder") as probe:
        for _ in range(40):
            tokens = torch.randint(100, (8, 32))
            logits = model(tokens)
            loss = nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    for finding in rs.diagnose(probe.recording):
        print(f"{finding.severity:8} {finding.sentence}")
    print("Report:", rs.write_report(probe.recording, "my_report.html"))


if __name__ == "__main__":
    main()
