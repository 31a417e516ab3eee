"""Measure what a device does with this project, each figure beside the device's own limits."""
