"""Checkpoints of a run: written whole, verified, resumed."""
