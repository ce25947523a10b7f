"""Train a vision transformer of timm's under probes: pip install timm. Run it: python examples/train_vit.py."""

import rheoscope as rs
import timm
import torch
from torch.nn import functional

STEPS, CLASSES, SIZE = 40, 4, 32


def main() -> None:
    """Tell in which quarter of a noisy picture the bright square lies."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=64,
        depth=6,
        num_heads=4,
        num_classes=CLASSES,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with rs.attach(model, optimizer, every=10, label="ViT") as probe:
        for _ in range(STEPS):
            pictures, classes = torch.randn(8, 3, SIZE, SIZE), torch.randint(CLASSES, (8,))
            for picture, quarter in zip(pictures, classes.tolist(), strict=True):
                row, column = divmod(quarter, 2)
                picture[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1
            loss = functional.cross_entropy(model(pictures), classes)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    print("Report:", rs.write_report(probe.recording, "vit.html"))


if __name__ == "__main__":
    main()
