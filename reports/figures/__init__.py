"""Show: figures, page, terminal. Nothing here computes."""
