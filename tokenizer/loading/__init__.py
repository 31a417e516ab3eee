"""Folders of weights that others may have written, loaded safely."""
