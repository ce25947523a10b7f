"""Keep what a spike of the loss began with, and find the smallest change of the steps before it that removes it."""
