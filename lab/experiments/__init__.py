"""Controlled experiments, one file each."""
