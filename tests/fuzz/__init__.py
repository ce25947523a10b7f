"""Recordings from strangers: mutate a sound one in every way, and hand each to the commands that read recordings."""
