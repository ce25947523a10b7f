"""Reduce tensors in one pass over memory: a C kernel on the CPU, Triton on CUDA, torch's operations elsewhere.

All of them fill a row of the same ten sums of the elements x of a tensor, seen as rows (tokens) of channels:

    count, sum x, sum x^2, sum x^3, sum x^4, largest |x|, zeros, non-finite elements,
    energy of the rows' means (channels x sum of squared row means), largest |mean| of a channel

The last two are 0 where they are not asked for.
"""

from __future__ import annotations

N_SUMS = 10
COUNT, FIRST, SECOND, THIRD, FOURTH, ABSMAX, ZEROS, NONFINITE, ROW_MEANS, CHANNEL = range(N_SUMS)
WANTS_CHANNELS, WANTS_ROW_MEANS = 1, 2  # flags
# The power of a factor on x by which each sum is multiplied.
POWERS = {FIRST: 1, SECOND: 2, THIRD: 3, FOURTH: 4, ABSMAX: 1, ROW_MEANS: 2, CHANNEL: 1}
