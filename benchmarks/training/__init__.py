"""How training goes: problems, optimizers, the loops over batches and over all examples at once."""
