"""Which products a device multiplies in hardware."""

import torch


def bf16_in_hardware(device: str) -> bool:
    """Whether `device` ('cpu', 'cuda') multiplies bf16 itself: elsewhere bf16 is slower than float32."""
    return torch.cuda.is_bf16_supported() if device == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
