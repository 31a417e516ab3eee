"""Load and check saved models, run folders and weight files, including those of unknown origin."""
