"""Layers that run from packed codes: they take the place of nn.Linear and nn.Embedding. Inference only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from moopt.backend.quantizers import Repair
from moopt.errors import QuantizationError
from moopt_kernels import (
    Prepacked,
    dequantize,
    dequantize_rows,
    quantized_linear,
    rearrange,
    slice_repack,
    sliced_linear,
    split_rows,
)

PARTS = ("codes", "scales", "zeros")
"""What a matrix consists of."""


class _Quantized(nn.Module):
    """A matrix [n, k] on packed codes, or the slice of an 8-bit parent."""

    codes: Tensor

    def __init__(self, matrix: Prepacked, dtype: torch.dtype, bits: int | None) -> None:
        super().__init__()
        _check_type(dtype)
        self.dtype, self.bits = dtype, matrix.bits
        self._hold(matrix)
        if bits is not None:
            self.switch(bits)

    def switch(self, to: int | Prepacked) -> None:
        """Change the width in place.

        Args:
            to: A width: the matrix is an 8-bit parent, and from now on its slice is read; nothing is moved or
                allocated. Or another matrix of the same shape.

        Raises:
            QuantizationError: there is no 8-bit parent to slice, or the shapes differ.
        """
        if isinstance(to, Prepacked):
            if to.shape != self.matrix.shape:
                raise QuantizationError(f"Got a matrix of shape {to.shape}; expected {self.matrix.shape}.")
            self.arrange(to)
            self.bits = to.bits
        else:
            self.check_slice(to)
            self.bits = to

    def check_slice(self, bits: int) -> None:
        """Refuse a width that there is no slice of.

        Raises:
            QuantizationError: the matrix is no 8-bit parent, or the width is not 2 to 8.
        """
        sliced = self.matrix.bits == 8 and type(bits) is int and 2 <= bits <= 8
        if not sliced and bits != self.matrix.bits:
            raise QuantizationError(
                f"Got a switch to {bits} bits of a matrix of {self.matrix.bits} bits; only 8-bit parents have slices, "
                "of 2 to 8 bits. Give another matrix, or store the parent."
            )

    def arrange(self, matrix: Prepacked) -> None:
        """Hold the matrix in another layout, or another matrix."""
        self._hold(matrix)

    def _hold(self, matrix: Prepacked) -> None:
        """Keep the matrix; its parts are buffers, too, so that whoever sums up a model's memory finds them."""
        self.matrix = matrix
        for part in PARTS:
            self.register_buffer(part, matrix.parts.get(part), persistent=False)

    def move(self, device: torch.device) -> None:
        """Run from a device, in the layout of its kernels."""
        self.arrange(rearrange(self.matrix, device))

    @property
    def slice_bits(self) -> int | None:
        """The width of the slice that is read; None where all of the codes are."""
        return None if self.bits == self.matrix.bits else self.bits

    @property
    def weight(self) -> Tensor:
        """The matrix [n, k] that the codes stand for, made anew each time."""
        matrix = self.matrix if self.slice_bits is None else slice_repack(self.matrix, self.slice_bits)
        return dequantize(matrix, self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow `model.to(...)`: codes and scales move but are never cast."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.matrix.codes.device))
        _check_type(probe.dtype)
        kept = {part: self._buffers.pop(part) for part in PARTS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers |= kept
        self.dtype = probe.dtype
        if probe.device != self.matrix.codes.device:
            self.move(probe.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight  # what saves the model gets one that anybody loads

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Take back the values that were saved; other ones would have to be quantized first."""
        name = f"{prefix}weight"
        others = {key: value for key, value in state_dict.items() if key != name}
        after = (strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(others, prefix, local_metadata, *after)
        if name not in state_dict:
            missing_keys.append(name)
        elif not torch.equal(state_dict[name].to(self.codes.device, self.dtype), self.weight):
            error_msgs.append(f"{name} has other values than the codes of this layer; switch(matrix) gives it others.")


def _check_type(dtype: torch.dtype) -> None:
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise QuantizationError(f"Got {dtype}; packed layers compute in bfloat16, float16 or float32.")


class QuantizedLinear(_Quantized):
    """Compute y = x W^T + bias, W read from packed codes.

    Args:
        matrix: W, outputs x inputs.
        bias: [outputs], or None.
        dtype: What `weight` gives; outputs have the input's type.
        bits: Width of the slice to read, where the matrix is an 8-bit parent; None for all of it.
    """

    def __init__(
        self,
        matrix: Prepacked,
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
        bits: int | None = None,
    ) -> None:
        super().__init__(matrix, dtype, bits)
        self.out_features, self.in_features = matrix.shape
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.fused: Fused | None = None
        self.up: Tensor | None
        self.down: Tensor | None
        self.mend(None)

    def mend(self, repair: Repair | None) -> None:
        """Run a repair beside the codes from now on, in the type the layer computes in; or none."""
        for part in Repair._fields:
            held = None if repair is None else getattr(repair, part).to(self.codes.device, self.dtype)
            self.register_buffer(part, held, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        fused = None if torch.compiler.is_compiling() else self.fused
        y = self.alone(x) if fused is None else fused.output(self, x)
        if self.up is None or self.down is None:
            return y
        return y + linear(linear(x.to(self.dtype), self.down), self.up).to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The matrix [n, k] that codes and repair stand for, made anew each time."""
        values = super().weight
        return values if self.up is None or self.down is None else values + self.up @ self.down

    def alone(self, x: Tensor) -> Tensor:
        """The output of the codes, computed for this layer only."""
        if self.slice_bits is None:
            return quantized_linear(x, self.matrix, self.bias)
        return sliced_linear(x, self.matrix, self.slice_bits, self.bias)

    def arrange(self, matrix: Prepacked) -> None:
        if self.fused is not None:
            self.fused.dissolve()
        super().arrange(matrix)

    def move(self, device: torch.device) -> None:
        if self.fused is None:
            super().move(device)
        else:
            self.fused.move(device)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.bits} bits, {self.matrix.layout}"


class QuantizedEmbedding(_Quantized):
    """Look up rows of a table that is stored in packed codes.

    Args:
        matrix: The table, vocabulary x hidden.
        dtype: What it gives.
        scale: What rows are multiplied by (Gemma), or None.
        bits: Width of the slice to read, where the matrix is an 8-bit parent; None for all of it.
    """

    def __init__(
        self, matrix: Prepacked, dtype: torch.dtype = torch.bfloat16, scale: Tensor | None = None,
        bits: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(matrix, dtype, bits)
        self.num_embeddings, self.embedding_dim = matrix.shape
        self.scale: Tensor | None
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., hidden]."""
        rows = dequantize_rows(self.matrix, ids, self.dtype, self.slice_bits)
        return rows if self.scale is None else rows * self.scale.to(rows.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings} x {self.embedding_dim}, {self.bits} bits, {self.matrix.layout}"


@dataclass
class _Handed:
    """Outputs that were computed at once for one input, and which of them are still to be fetched."""

    x: Tensor
    version: int
    bits: int
    outputs: list[Tensor | None]


class Fused:
    """Linears that read the same input (q, k, v; gate, up) as one matrix: one kernel call for all of them.

    The first that is called with an input computes all outputs; the others fetch theirs, once. It is the same input if
    it is the very same tensor and was not written to since; a write under `torch.inference_mode` cannot be told, so
    that there nothing may change an input between the calls of its linears, and no known model does. Layers whose
    widths differ at the moment run by themselves, on views of the same memory.

    Args:
        members: The layers, with matrices of one width, group size and layout.
        matrix: Their matrices one below the other.
    """

    def __init__(self, members: Sequence[QuantizedLinear], matrix: Prepacked) -> None:
        self._members = tuple(members)
        self._handed: _Handed | None = None
        self._sizes = [m.out_features for m in members]
        self._hold(matrix)

    def output(self, member: QuantizedLinear, x: Tensor) -> Tensor:
        """What one of the members gives for an input."""
        if any(m.bits != member.bits for m in self._members):
            return member.alone(x)
        place, version = self._members.index(member), 0 if x.is_inference() else x._version
        handed = self._handed
        if handed is not None and handed.x is x and (handed.version, handed.bits) == (version, member.bits):
            found, handed.outputs[place] = handed.outputs[place], None
            if all(output is None for output in handed.outputs):
                self._handed = None
            if found is not None:
                return found
        outputs: list[Tensor | None] = list(self._all(x, member.slice_bits).split(self._sizes, -1))
        found, outputs[place] = outputs[place], None
        self._handed = _Handed(x, version, member.bits, outputs)
        assert found is not None
        return found

    def move(self, device: torch.device) -> None:
        """Run from a device, in the layout of its kernels."""
        self._hold(rearrange(self._matrix, device))

    def _all(self, x: Tensor, bits: int | None) -> Tensor:
        biases = [m.bias for m in self._members]
        bias = None
        if any(b is not None for b in biases):
            bias = torch.cat([x.new_zeros(m.out_features) if m.bias is None else m.bias for m in self._members])
        if bits is None:
            return quantized_linear(x, self._matrix, bias)
        return sliced_linear(x, self._matrix, bits, bias)

    def dissolve(self) -> None:
        """Let each member run by itself from now on: one of them gets a matrix of its own."""
        self._handed = None
        for member in self._members:
            member.fused = None

    def _hold(self, matrix: Prepacked) -> None:
        """Take the matrix, and give each member its rows; dissolve where a layout cannot share memory."""
        self.dissolve()
        self._matrix, views = matrix, split_rows(matrix, self._sizes)
        for place, member in enumerate(self._members):
            if views is None:
                member.arrange(rearrange(member.matrix, matrix.codes.device, matrix.layout))
            else:
                member.arrange(views[place])
        for member in self._members if views is not None else ():
            member.fused = self
