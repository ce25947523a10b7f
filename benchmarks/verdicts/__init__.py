"""Score the verdicts: plant faults in models of many makes, and ask whether they are found, where, and as what."""
