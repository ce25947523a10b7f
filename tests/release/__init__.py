"""Build what is released, and use it as a stranger does."""
