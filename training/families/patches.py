"""Latents [B, C, h, w] in patches of 2 x 2, [B, h w / 4, 4 C], as some networks read them."""

import torch
from torch import Tensor


def count(size: tuple[int, int]) -> int:
    """How many patches latents of a size (height, width) have."""
    return size[0] // 2 * (size[1] // 2)


def split(latents: Tensor) -> Tensor:
    """The patches, row by row; in each the channels, and within a channel its four places."""
    samples, channels, height, width = latents.shape
    parts = latents.view(samples, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(samples, -1, 4 * channels)


def join(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents of a size (height, width) from their patches."""
    samples, height, width = len(patches), *size
    parts = patches.view(samples, height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(samples, -1, height, width)


def places(size: tuple[int, int], device: torch.device) -> Tensor:
    """The position of each patch of latents of a size (height, width), [h w / 4, 3]: (0, row, column)."""
    height, width = size[0] // 2, size[1] // 2
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=1)
