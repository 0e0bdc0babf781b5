"""These kernels have no gradients: who asks a result for one is told so, rather than given none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moopt_kernels.dispatch import KernelError


def wants_gradient(*inputs: Tensor | None) -> bool:
    """Whether PyTorch would record a call with these; within a compiled graph it does not ask."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in inputs)


def without_gradient(op: Any, *arguments: Any) -> Tensor:
    """What an operator returns; its backward pass raises KernelError."""
    with torch.no_grad():
        result = op(*arguments)
    inputs = [argument for argument in arguments if isinstance(argument, Tensor) and argument.requires_grad]
    found: Tensor = _InferenceOnly.apply(result, *inputs)  # type: ignore[no-untyped-call]
    return found


class _InferenceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, *inputs: Tensor) -> Tensor:
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise KernelError(
            "The kernels on packed codes are for inference only and have no gradients; train the float model, or run "
            "this one under torch.no_grad()."
        )
