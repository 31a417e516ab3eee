"""Dry runs: what a training takes, before it is started."""
