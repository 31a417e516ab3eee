"""Principal component analysis: the plane in which points vary most."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def principal_plane(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean (C,), the first two principal axes (2, C), and their variance shares (2,) of tokens (N, C).

    All float64. An axis points towards the token farthest out on it. With one channel the second axis is 0.
    """
    tokens = tokens.double()
    mean = tokens.mean(dim=0)
    centred = tokens - mean
    # The triangular factor has the same singular values and right vectors as the tokens, but few rows.
    _, lengths, directions = torch.linalg.svd(torch.linalg.qr(centred, mode="r").R)
    axes = pad(directions[:2], (0, 0, 0, 2 - len(directions[:2])))
    coordinates = centred @ axes.T
    furthest = coordinates.gather(0, coordinates.abs().argmax(dim=0, keepdim=True))[0]
    variances = pad(lengths[:2].square(), (0, 2 - len(lengths[:2])))
    shares = variances / lengths.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return mean, axes * torch.where(furthest < 0, -1.0, 1.0)[:, None], shares
