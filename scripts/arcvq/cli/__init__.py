"""The command line: options, configs, one-line errors, where a number comes from."""
