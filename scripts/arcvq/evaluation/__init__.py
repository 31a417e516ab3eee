"""Images, tokenizers, pipelines => named numbers in a JSON file."""
