"""Reduce a tensor to power sums in one pass over memory: a C kernel on the CPU, Triton on CUDA, torch elsewhere."""
