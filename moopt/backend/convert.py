"""Turn a transformers model into one that runs from packed codes: each quantized matrix gets a layer of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from moopt.backend.quantized_linear import Fused, QuantizedEmbedding, QuantizedLinear
from moopt.backend.quantizers import Quantized
from moopt.backend.weights import FUSED
from moopt.errors import BackendError
from moopt_kernels import Prepacked, dequantize, prepack, slice_repack


def plain(matrix: Quantized) -> Prepacked:
    """A quantized matrix in packed bytes, row by row, as the packed file has it."""
    group_size = matrix.codes.shape[1] // matrix.scales.shape[1]
    return prepack(matrix.codes, matrix.scales, matrix.zeros, matrix.bits, group_size, "plain")


def convert(
    model: Any, matrices: Mapping[str, Prepacked], device: torch.device, slices: Mapping[str, int] | None = None
) -> None:
    """Let a model run from packed codes, in place. What is not named stays as it is.

    Linears that read the same input and have the same width become one kernel call; an output head that is tied to the
    embedding reads the embedding's codes. A layer of a kind that has no packed counterpart gets the dequantized
    weights.

    Args:
        model: With its other parameters in place, on the device, in the type it computes in.
        matrices: By the module's name.
        device: Where it is to run.
        slices: Widths of slices, by name, where the matrices are 8-bit parents.

    Raises:
        BackendError: the model has no such module, or a matrix has not its shape.
    """
    widths = slices or {}
    embedding, head = _tables(model)
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    layers: dict[str, QuantizedLinear] = {}
    for name, matrix in matrices.items():
        module = _module(model, name, matrix)
        layer = _layer(module, matrix, widths.get(name), model.dtype)
        if layer is None:
            module.weight.data = _dense(matrix, widths.get(name), model.dtype).to(device)
        else:
            _put(model, name, layer)
        if isinstance(layer, QuantizedLinear):
            layers[name] = layer
    for members in fusible(layers):
        Fused(members, _joined([m.matrix for m in members]))
    for module in model.modules():
        if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
            module.move(device)
    table = _tables(model)[0]
    if tied and isinstance(table, QuantizedEmbedding):
        model.set_output_embeddings(QuantizedLinear(table.matrix, head.bias, model.dtype, table.slice_bits))
        model.get_output_embeddings().eval()


def switch(model: Any, slices: Mapping[str, int]) -> None:
    """Read other slices of the 8-bit parents a model runs from: at once, nothing is moved.

    Args:
        model: What `convert` made of 8-bit parents.
        slices: Widths by the module's name; a tied output head follows its embedding.

    Raises:
        QuantizationError: a matrix is no 8-bit parent.
    """
    embedding, head = _tables(model)
    for name, bits in slices.items():
        module = model.get_submodule(name)
        module.switch(bits)
        if module is embedding and isinstance(head, QuantizedLinear) and head.matrix is embedding.matrix:
            head.switch(bits)


def fusible(layers: Mapping[str, QuantizedLinear]) -> Iterable[list[QuantizedLinear]]:
    """The layers that read the same input and can be one matrix: neighbours of one width, group size and kind."""
    parents = dict.fromkeys(name.rpartition(".")[0] for name in layers)
    for parent in parents:
        for leaves in FUSED:
            found = [layers[f"{parent}.{leaf}"] for leaf in leaves if f"{parent}.{leaf}" in layers]
            kinds = {(m.bits, m.matrix.bits, m.matrix.group_size, m.matrix.zeros is None) for m in found}
            if len(found) > 1 and len(kinds) == 1:
                yield found


def _joined(matrices: list[Prepacked]) -> Prepacked:
    """Plain matrices one below the other."""
    first = matrices[0]
    zeros = None if first.zeros is None else torch.cat([m.zeros for m in matrices if m.zeros is not None])
    codes, scales = torch.cat([m.codes for m in matrices]), torch.cat([m.scales for m in matrices])
    shape = (len(codes), first.shape[1])
    return Prepacked(codes, scales, zeros, first.bits, first.group_size, shape, "plain", first.shift)


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


def _module(model: Any, name: str, matrix: Prepacked) -> Any:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise BackendError(f"The model has no module {name!r}: the matrices are not those of this model.") from error
    if tuple(module.weight.shape) != matrix.shape:
        raise BackendError(f"Got a matrix of shape {matrix.shape} for {name}; expected {tuple(module.weight.shape)}.")
    return module


def _put(model: Any, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer.eval())


def _tables(model: Any) -> tuple[Any, Any]:
    """The embedding and the output head, where the model has them."""
    return model.get_input_embeddings(), model.get_output_embeddings()
