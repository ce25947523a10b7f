"""How large the models of the benchmark are: every one of them alike."""

WIDTH, HEADS, HIDDEN, VOCABULARY, BATCH, LENGTH = 64, 4, 128, 128, 2, 24
