"""Convolution and normalization written from their definitions, in float64 numpy."""

import math

import numpy as np


def conv(x, kernel, stride=1, bias=None):
    """`[B, h, w, c]`, padded with zeros so that ⌈size/stride⌉ positions come out."""
    x, kernel = np.float64(x), np.float64(kernel)
    size = kernel.shape[0]
    outs = [math.ceil(n / stride) for n in x.shape[1:3]]
    pads = [
        max((out - 1) * stride + size - n, 0)
        for out, n in zip(outs, x.shape[1:3], strict=True)
    ]
    # Of an odd number of zeros the one more is at the end.
    x = np.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
    y = np.zeros((len(x), *outs, kernel.shape[-1]))
    for i in range(outs[0]):
        for j in range(outs[1]):
            window = x[:, i * stride :, j * stride :][:, :size, :size]
            y[:, i, j] = np.einsum("bhwc,hwcd->bd", window, kernel)
    return y if bias is None else y + np.float64(bias)


def norm(x, params, groups=None, epsilon=1e-6):
    """Layer normalization of every position, or group normalization of every image."""
    out = np.empty_like(x)
    size = x.shape[-1] // (groups or 1)
    for b in range(len(x)):
        if groups is None:
            for where in np.ndindex(x.shape[1:3]):
                values = x[b][where]
                out[b][where] = (values - values.mean()) / np.sqrt(
                    values.var() + epsilon
                )
            continue
        for start in range(0, x.shape[-1], size):
            values = x[b, :, :, start : start + size]
            out[b, :, :, start : start + size] = (values - values.mean()) / np.sqrt(
                values.var() + epsilon
            )
    return out * np.float64(params["gain"]) + np.float64(params["shift"])
