"""A folder of images -> its splits, classes and tables."""
