"""Turn a transformers model into one that runs from packed codes: each quantized matrix gets a layer of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from moopt.backend import weights
from moopt.backend.quantized_linear import Fused, QuantizedEmbedding, QuantizedLinear
from moopt.backend.quantizers import Quantized, Repair
from moopt.backend.weights import FUSED
from moopt.errors import BackendError
from moopt_kernels import Prepacked, dequantize, prepack, quantize_weight, rearrange, slice_repack


def plain(matrix: Quantized) -> Prepacked:
    """A quantized matrix in packed bytes, row by row, as the packed file has it."""
    group_size = matrix.codes.shape[1] // matrix.scales.shape[1]
    return prepack(matrix.codes, matrix.scales, matrix.zeros, matrix.bits, group_size, "plain", matrix.shift)


def convert(
    model: Any, matrices: Mapping[str, Prepacked], device: torch.device, slices: Mapping[str, int] | None = None,
    repairs: Mapping[str, Repair] | None = None,
) -> None:  # fmt: skip
    """Let a model run from packed codes, in place. What is not named stays as it is.

    Linears that read the same input and have the same width become one kernel call; an output head that is tied to the
    embedding reads the embedding's codes. A layer of a kind that has no packed counterpart gets the dequantized
    weights.

    Args:
        model: With its other parameters in place, on the device, in the type it computes in.
        matrices: By the module's name.
        device: Where it is to run.
        slices: Widths of slices, by name, where the matrices are 8-bit parents.
        repairs: What runs beside linear layers, by name.

    Raises:
        BackendError: the model has no such module, runs it from codes already, or a matrix has not its shape.
        QuantizationError: a width is no slice's, or the model computes in a type that the kernels do not. The model is
            as it was, after either.
    """
    widths, repairs = slices or {}, repairs or {}
    if unknown := [name for name in widths if name not in matrices]:
        raise BackendError(f"Got a slice of {unknown[0]!r}, of which there is no matrix.")
    embedding, head = _tables(model)
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    all_modules = dict(model.named_modules())
    modules = {name: _module(all_modules.get(name), name, matrix) for name, matrix in matrices.items()}
    layers = {name: _layer(modules[name], m, widths.get(name), model.dtype) for name, m in matrices.items()}
    for name, layer in layers.items():
        if layer is None:
            values = _dense(matrices[name], widths.get(name), model.dtype).to(device)
            modules[name].weight.data = values if name not in repairs else repairs[name].added(values)
        else:
            _put(model, name, layer)
    for members in fusible({name: layer for name, layer in layers.items() if isinstance(layer, QuantizedLinear)}):
        Fused(members, _joined([m.matrix for m in members]))
    for module in model.modules():
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            module.move(device)
    for name, layer in layers.items():
        if name in repairs and isinstance(layer, QuantizedLinear):
            layer.mend(repairs[name])
    table = _tables(model)[0]
    if tied and isinstance(table, QuantizedEmbedding):
        model.set_output_embeddings(QuantizedLinear(table.matrix, head.bias, model.dtype, table.slice_bits))
        model.get_output_embeddings().eval()
        model._tied_weights_keys = {}  # they share codes now, not a parameter that tie_weights could set


def quantize(
    model: Any, bits: int | Mapping[str, int], group_size: int = 64, symmetric: bool = False,
    device: torch.device | None = None,
) -> None:  # fmt: skip
    """Let a transformers model of your own run from packed codes, in place: round to nearest, then `convert`.

    Args:
        model: With its weights, in the type it computes in: bfloat16, float16 or float32.
        bits: The width of every linear layer, 2 to 8; embedding and output head get 8. Or widths by the module's name,
            where what is not named stays as it is.
        group_size: How many inputs share a scale; it need not divide them.
        symmetric: Whether zero is the middle of the codes, so that no zero points are stored.
        device: Where it is to run; None: where it is.

    Raises:
        BackendError: the model has no such module, or runs it from codes already.
        QuantizationError: the model computes in another type.
        ValueError: a width or the group size is none.
    """
    found = weights.inventory(model).weights
    widths = bits if isinstance(bits, Mapping) else {w.name: bits if w.kind == "linear" else 8 for w in found}
    if unknown := sorted({*widths} - {w.name for w in found}):
        named = ", ".join(w.name for w in found[:2]) or "none"
        raise BackendError(f"The model has no matrix {unknown[0]!r} to quantize; it has {named} and so on.")
    matrices = {
        name: quantize_weight(model.get_submodule(name).weight.data, width, group_size, symmetric)
        for name, width in widths.items()
    }
    convert(model, matrices, device or model.device)


def switch(model: Any, slices: Mapping[str, int]) -> None:
    """Read other slices of the 8-bit parents a model runs from: at once, nothing is moved.

    Args:
        model: What `convert` made of 8-bit parents.
        slices: Widths by the module's name; a tied output head follows its embedding.

    Raises:
        BackendError: the model runs no such module from codes.
        QuantizationError: a matrix is no 8-bit parent, or a width is no slice's. All widths are as they were, then.
    """
    embedding, head = _tables(model)
    found = dict(model.named_modules())
    for name, bits in slices.items():
        if not isinstance(found.get(name), (QuantizedLinear, QuantizedEmbedding)):
            raise BackendError(f"Got a slice of {name!r}, which the model does not run from codes.")
        found[name].check_slice(bits)
    for name, bits in slices.items():
        found[name].switch(bits)
        if found[name] is embedding and isinstance(head, QuantizedLinear) and head.matrix is embedding.matrix:
            head.switch(bits)


def fusible(layers: Mapping[str, QuantizedLinear]) -> Iterable[list[QuantizedLinear]]:
    """The layers that read the same input and can be one matrix: neighbours of one width, group size and kind."""
    parents = dict.fromkeys(name.rpartition(".")[0] for name in layers)
    for parent in parents:
        for leaves in FUSED:
            found = [layers[f"{parent}.{leaf}"] for leaf in leaves if f"{parent}.{leaf}" in layers]
            kinds = {
                (m.bits, m.matrix.bits, m.matrix.group_size, m.matrix.shift, m.matrix.zeros is None) for m in found
            }
            if len(found) > 1 and len(kinds) == 1:
                yield found


def _joined(matrices: list[Prepacked]) -> Prepacked:
    """Matrices of any layout one below the other, in the layout "plain"."""
    parts = [rearrange(m, m.codes.device, "plain") for m in matrices]
    first = parts[0]
    zeros = None if first.zeros is None else torch.cat([m.zeros for m in parts if m.zeros is not None])
    codes, scales = torch.cat([m.codes for m in parts]), torch.cat([m.scales for m in parts])
    return replace(first, codes=codes, scales=scales, zeros=zeros, shape=(len(codes), first.shape[1]))


def _layer(
    module: nn.Module, matrix: Prepacked, bits: int | None, dtype: torch.dtype
) -> QuantizedLinear | QuantizedEmbedding | None:
    """What takes a module's place; None for a kind that is not known to do no more than its base class."""
    if type(module) is nn.Linear:
        return QuantizedLinear(matrix, module.bias, dtype, bits)
    if type(module) is nn.Embedding or (isinstance(module, nn.Embedding) and hasattr(module, "embed_scale")):
        scale = getattr(module, "embed_scale", None)
        scale = None if scale is None else torch.as_tensor(scale)
        return QuantizedEmbedding(matrix, dtype, scale, bits)
    return None


def _dense(matrix: Prepacked, bits: int | None, dtype: torch.dtype) -> torch.Tensor:
    return dequantize(matrix if bits in (None, matrix.bits) else slice_repack(matrix, bits or matrix.bits), dtype)


def _module(module: Any, name: str, matrix: Prepacked) -> Any:
    """The module, if the matrix can take its weight's place."""
    if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
        raise BackendError(f"{name} runs from codes already; give it another matrix with its own switch(matrix).")
    if module is None or not isinstance(getattr(module, "weight", None), torch.Tensor):
        raise BackendError(f"The model has no module {name!r}: the matrices are not those of this model.")
    if tuple(module.weight.shape) != matrix.shape:
        raise BackendError(f"Got a matrix of shape {matrix.shape} for {name}; expected {tuple(module.weight.shape)}.")
    return module


def _put(model: Any, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer.eval())


def _tables(model: Any) -> tuple[Any, Any]:
    """The embedding and the output head, where the model has them."""
    return model.get_input_embeddings(), model.get_output_embeddings()
