"""Convolutions with a few output pixels as matrix products, which are faster on a CPU.

On x86 processors, PyTorch convolves with oneDNN, which is slow where the output has few pixels. For
64 × 64 images, the last stage of ResNet-18 has 2 × 2 pixels. It took half of a training step in
bfloat16 (AMX). One matrix product over the whole batch computes the same several times as fast.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

MAX_PIXELS = 3 * 3  # for 4 × 4 output pixels of 256 channels, oneDNN is faster


def im2col_for_few_pixels(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which convolutions with a few output pixels are matrix products.

    On other devices than a CPU, it changes nothing.
    """
    return Im2colForFewPixels() if device.type == "cpu" else nullcontext()


class Im2colForFewPixels(TorchFunctionMode):
    """Replaces `F.conv2d`, as `nn.Conv2d` calls it, where the output has a few pixels."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.conv2d and output_pixels(*args) <= MAX_PIXELS:
            return im2col_convolution(*args)
        return function(*args, **(kwargs or {}))


def output_pixels(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *dilation_and_groups: object,
) -> int:
    """Return the height times the width of the output of a convolution."""
    height, width = (
        (size + 2 * margin - kernel) // step + 1
        for size, margin, kernel, step in zip(
            images.shape[2:], padding, weight.shape[2:], stride, strict=True
        )
    )
    return height * width


def im2col_convolution(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *dilation_and_groups: object,
) -> Tensor:
    """Return a convolution, computed as one matrix product.

    Source: "unrolled convolution" in Chellapilla, Puri and Simard, "High Performance Convolutional
    Neural Networks for Document Processing", 2006.

    Args:
        images: (N, C, H, W), fast if channels-last.
        weight: (D, C, K, L), fast if channels-last.
        bias: (D,) or None.
        stride: vertical and horizontal.
        padding: vertical and horizontal.
        dilation_and_groups: ignored. The two networks use neither.

    Returns:
        (N, D, H', W'), channels-last.
    """
    vertical, horizontal = padding
    kernel_height, kernel_width = weight.shape[2:]

    padded = F.pad(  # (N, H + 2 * vertical, W + 2 * horizontal, C)
        images.permute(0, 2, 3, 1), (0, 0, horizontal, horizontal, vertical, vertical)
    )
    windows = padded.unfold(1, kernel_height, stride[0])  # (N, H', W + 2 * horizontal, C, K)
    windows = windows.unfold(2, kernel_width, stride[1])  # (N, H', W', C, K, L)
    rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (N, H', W', K * L * C)
    matrix = weight.permute(0, 2, 3, 1).flatten(1)  # (D, K * L * C)
    return F.linear(rows, matrix, bias).permute(0, 3, 1, 2)  # (N, D, H', W')
