"""Speed and memory next to named peers."""
