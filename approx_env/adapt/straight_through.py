"""Integer operators that give gradients as if they did not round: the straight-through estimator.

Source: Bengio et al., arXiv:1308.3432. A threshold's gradient comes from the codes near it. The gradient of v1 is the
sum over what became v1, and that of v2 likewise: Esser et al., 'Learned step size quantization', ICLR 2020. tmax goes
after a quantile: Koenker & Bassett, 'Regression quantiles', Econometrica 46, 1978. In float32 on a CPU the loops are
numba's, because torch takes 36 times as long over TAP. Elsewhere they are torch's, and nothing waits for the device.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch.nn import functional as F

from approx_env import tap
from approx_env.engines.base import in_order

REACH = 2  # codes on each side of a threshold that its gradient is drawn from

_compiled = numba.njit(nogil=True, cache=True)
_reordered = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})  # sums in vectors


class Instead(torch.autograd.Function):
    """Gives the second value and passes the gradient to the first."""

    @staticmethod
    def forward(ctx, smooth: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient, None


class Approximate(torch.autograd.Function):
    """TAP of codes `x float32` under `codes (5,) float32`, whole numbers, tmax among them.

    With `exact`, a share of the codes, tmax has the gradient of the pinball loss, whose minimum leaves that share above
    it.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, codes: torch.Tensor, exact: torch.Tensor | None) -> torch.Tensor:
        x = in_order(x)
        ctx.save_for_backward(x, codes, exact)
        if _fast(x):
            y = torch.empty_like(x)
            _approximate(_flat(x), _flat(y), *codes.numpy())
            return y
        t1, v1, t2, v2, tmax = codes.to(x.dtype)
        y = torch.where(x <= tmax, v2, x)
        y = torch.where(x <= t2, v1, y)
        return y.masked_fill_(x <= t1, 0)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        x, codes, exact = ctx.saved_tensors
        t1, v1, t2, v2, tmax = codes
        # Without a tail, a code far above v2 becomes v2 whatever it is. So none above v2 + (v2 - t2) has a gradient.
        # Nor has one below a tmax that follows, which it would push on.
        highest = 2 * v2 - t2
        if exact is None:
            highest = highest.masked_fill(tmax < tap.HIGHEST_CODE, tap.HIGHEST_CODE)
        of_x = gradient if _fast(x) and highest >= tmax else gradient * ((x <= highest) | (x > tmax))
        if not ctx.needs_input_grad[1]:
            return of_x, None, None
        gradient = in_order(gradient)
        if _fast(x):
            sums = np.zeros(5)
            _code_sums(_flat(x), _flat(gradient), *codes[[0, 2, 4]].numpy(), np.float32(REACH), sums)
            at_t1, at_v1, at_t2, at_v2, above = torch.from_numpy(sums)
        else:
            near = [(x > t - REACH) & (x <= t + REACH) for t in (t1, t2)]
            within = [(x > low) & (x <= high) for low, high in ((t1, t2), (t2, tmax))]
            masks = (near[0], within[0], near[1], within[1])
            at_t1, at_v1, at_t2, at_v2 = ((gradient * mask).sum() for mask in masks)
            above = (x > tmax).sum()
        # A threshold that grows by one takes v1 (or v2 - v1) from the codes that it passes.
        of_t1, of_t2 = -v1 * at_t1 / (2 * REACH), -(v2 - v1) * at_t2 / (2 * REACH)
        of_tmax = torch.zeros_like(at_v2) if exact is None else exact - above / x.numel()
        of_codes = torch.stack([of_t1, at_v1, of_t2, at_v2, of_tmax])
        return of_x, of_codes.to(codes.dtype), None


class Requantise(torch.autograd.Function):
    """Codes of sums `(n, out, ...) float32` and `scale (out,) float32`; the cut at 0 and 255 passes no gradient."""

    @staticmethod
    def forward(ctx, sums: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        sums = in_order(sums)
        ctx.save_for_backward(sums, scale)
        if _fast(sums):
            codes = torch.empty_like(sums)
            _requantise(_rows(sums), scale.numpy(), _rows(codes))
            return codes
        return (sums * _across(scale, sums) + 0.5).floor_().clamp_(0, tap.HIGHEST_CODE)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        sums, scale = ctx.saved_tensors
        gradient = in_order(gradient)
        if _fast(sums):
            of_sums, of_scale = torch.empty_like(sums), np.zeros(len(scale))
            _requantise_back(_rows(sums), scale.numpy(), _rows(gradient), _rows(of_sums), of_scale)
            return of_sums, torch.from_numpy(of_scale).float()
        value = sums * _across(scale, sums)
        gradient = gradient * ((value > 0) & (value < tap.HIGHEST_CODE))
        places = [axis for axis in range(sums.dim()) if axis != 1]
        return gradient * _across(scale, sums), (gradient * sums).sum(places)


class Convolve(torch.autograd.Function):
    """A convolution of whole numbers below 2**24 in float32; its gradients are products of bf16 where `bf16` says so.

    Codes and int8 weights are exact in bf16: only the gradient that comes in is rounded to 8 bits.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, groups, bf16):
        ctx.save_for_backward(*((x.bfloat16(), weight.bfloat16()) if bf16 else (x, weight)))
        ctx.stride, ctx.padding, ctx.groups = stride, padding, groups
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        x, weight = ctx.saved_tensors
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient.to(x.dtype), x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), ctx.groups,
            (*ctx.needs_input_grad[:2], False),
        )  # fmt: skip
        of_x = of_x.float() if ctx.needs_input_grad[0] else None
        of_weight = of_weight.float() if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum((0, 2, 3)), None, None, None, None


def _fast(x: torch.Tensor) -> bool:
    """Whether the loops below take it."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _across(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values of the channels, as they go with `like (n, out, ...)`."""
    return values.view(-1, *[1] * (like.dim() - 2))


def _rows(x: torch.Tensor) -> np.ndarray:
    """The memory of `x (n, c, ...)`, channels last, as `(places, c)`."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).numpy().reshape(-1, x.shape[1])


def _flat(x: torch.Tensor) -> np.ndarray:
    """The memory of `x`, channels last, as `(n,)`."""
    return _rows(x).reshape(-1)


@_compiled
def _approximate(x, y, t1, v1, t2, v2, tmax):
    for i in range(x.size):
        code = x[i]
        y[i] = code if code > tmax else v2 if code > t2 else v1 if code > t1 else np.float32(0)


@_reordered
def _code_sums(x, gradient, t1, t2, tmax, reach, sums):
    """Adds the gradient near t1, of v1, near t2 and of v2, and the codes above tmax, to `sums (5,) float64`."""
    none, one = np.float32(0), np.float32(1)
    at_t1, at_v1, at_t2, at_v2, above = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(x.size):
        code, g = x[i], gradient[i]
        at_t1 += g if abs(code - t1 - np.float32(0.5)) < reach else none
        at_t2 += g if abs(code - t2 - np.float32(0.5)) < reach else none
        at_v1 += g if (code > t1) & (code <= t2) else none
        at_v2 += g if (code > t2) & (code <= tmax) else none
        above += one if code > tmax else none
    sums[0] += at_t1
    sums[1] += at_v1
    sums[2] += at_t2
    sums[3] += at_v2
    sums[4] += above


@_compiled
def _requantise(sums, scale, codes):
    for i in range(sums.shape[0]):
        for c in range(sums.shape[1]):
            code = np.floor(sums[i, c] * scale[c] + np.float32(0.5))
            codes[i, c] = min(max(code, np.float32(0)), np.float32(255))


@_compiled
def _requantise_back(sums, scale, gradient, of_sums, of_scale):
    for i in range(sums.shape[0]):
        for c in range(sums.shape[1]):
            value = sums[i, c] * scale[c]
            inside = value > np.float32(0) and value < np.float32(255)
            g = gradient[i, c] if inside else np.float32(0)
            of_sums[i, c] = g * scale[c]
            of_scale[c] += g * sums[i, c]
