"""Shards on disk or at an address => images in order, or in a seeded shuffled order."""
