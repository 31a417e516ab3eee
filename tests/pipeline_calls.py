"""Calls of the pipelines for their tests."""

import torch


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample(pipe, labels=(0, 2), seeds=None, **options):
    """Images (n, C, H, W), image i from a generator of its own with the seed seeds[i], or labels[i]."""
    options = {"output_type": "pt", "generator": seeded(*(seeds or labels))} | options
    return pipe(list(labels), **options).images
