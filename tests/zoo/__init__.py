"""The zoo: every model type of the installed transformers, built small, discovered, and judged by oracles."""
