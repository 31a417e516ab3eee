"""The arc loss from the table of all similarities, as the equations have it: the oracle of the streaming form."""

import torch


def plain_arc_loss(latents, codebook, scale=10.0, margin=0.1, top_k=3):
    """latents (N, D), codebook (K, D) -> scalar; no zero vectors. Gradients come from autograd alone."""
    directions = latents / latents.norm(dim=1, keepdim=True)
    codes = codebook / codebook.norm(dim=1, keepdim=True)
    cosines = codes @ directions.T  # (K, N)
    positive = torch.zeros_like(cosines, dtype=torch.bool)
    positive.scatter_(1, cosines.topk(min(top_k, len(latents)), dim=1).indices, True)
    chords = [(codes[:, None] + sign * directions).norm(dim=2) for sign in (-1, 1)]  # (K, N) each
    angles = 2 * torch.atan2(*chords)
    logits = scale * torch.where(positive, torch.cos(angles + margin), cosines)
    numerator = torch.logsumexp(logits.masked_fill(~positive, -torch.inf), dim=1)
    return (torch.logsumexp(logits, dim=1) - numerator).mean()
