"""The zoo: every model type of the installed transformers, built small, discovered, and judged by oracles."""

from .stubs import stub_torchvision

# Before transformers is imported: it asks once whether torchvision is there.
stub_torchvision()
