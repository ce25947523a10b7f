"""Experiment: a reference transformer whose every choice is a field, real text, and controlled comparisons."""
