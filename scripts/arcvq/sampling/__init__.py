"""Trained pipelines => images on disk."""
