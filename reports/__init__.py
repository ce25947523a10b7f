"""Show: figures, page, terminal. Nothing here computes, and nothing here imports torch."""
