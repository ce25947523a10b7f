"""The commands, one file each; this one lists them and turns Rheoscope's errors into one sentence and an exit code."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
