"""Export a trained run as a folder to give away: weights, a model card, examples."""
