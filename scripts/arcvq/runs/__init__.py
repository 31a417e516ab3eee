"""A training run: its folder, options, steps, randomness, logs, EMA, results."""
