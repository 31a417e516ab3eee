"""Trainings that are killed, starved, or fed broken inputs, and what becomes of them."""
