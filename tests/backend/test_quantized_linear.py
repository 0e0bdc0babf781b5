"""Layers on packed codes: the same as dense ones, switched in place, and one kernel call for what reads one input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from moopt.backend import quantizers
from moopt.backend.convert import plain
from moopt.backend.quantized_linear import Fused, QuantizedEmbedding, QuantizedLinear
from moopt.errors import QuantizationError
from moopt_kernels import Prepacked, calls, dequantize, rearrange, reset_calls, slice_repack


def matrix(n: int, k: int = 64, bits: int = 8, seed: int = 0) -> Prepacked:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    return plain(quantizers.rtn(weight, bits, 32))


def fused(bias: bool = True, sizes: tuple[int, ...] = (32, 16, 16)) -> list[QuantizedLinear]:
    whole = matrix(sum(sizes))
    biases = [torch.randn(n) if bias and n == 16 else None for n in sizes]
    placeholders = [matrix(n, seed=i) for i, n in enumerate(sizes)]
    members = [QuantizedLinear(p, b, torch.float32) for p, b in zip(placeholders, biases, strict=True)]
    Fused(members, whole)
    members[0].move(torch.device("cpu"))
    return members


def kernel_calls() -> int:
    return sum(count for (name, _), count in calls().items() if name in ("quantized_linear", "sliced_linear"))


def exact(member: QuantizedLinear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, member.weight, member.bias)


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_it_computes_what_the_dense_layer_does_at_every_slice_of_its_parent() -> None:
    parent, bias, x = rearrange(matrix(48), "cpu"), torch.randn(48), torch.randn(2, 3, 64)
    layer = QuantizedLinear(parent, bias, torch.float32)
    where = layer.matrix.codes.data_ptr()
    for bits in (8, 4, 2, 3, 8):
        layer.switch(bits)
        dense = dequantize(parent if bits == 8 else slice_repack(parent, bits))
        assert torch.equal(layer.weight, dense)
        assert same(layer(x), nn.functional.linear(x, dense, bias))
    assert layer.matrix.codes.data_ptr() == where


def test_it_takes_another_matrix_and_refuses_what_does_not_fit() -> None:
    layer, x = QuantizedLinear(rearrange(matrix(48, bits=4), "cpu"), dtype=torch.float32), torch.randn(1, 64)
    other = rearrange(matrix(48, bits=3, seed=1), "cpu")
    layer.switch(other)
    assert layer.bits == 3
    assert same(layer(x), x @ dequantize(other).T)
    with pytest.raises(QuantizationError, match="switch to 2 bits of a matrix of 3 bits; only 8-bit parents"):
        layer.switch(2)
    with pytest.raises(QuantizationError, match=r"shape \(16, 64\); expected \(48, 64\)"):
        layer.switch(matrix(16))


def test_an_embedding_looks_up_the_dequantized_rows() -> None:
    table = rearrange(matrix(70), "cpu")
    layer = QuantizedEmbedding(table, torch.bfloat16, torch.tensor(8.0))
    ids = torch.tensor([[3, 69], [0, 3]])
    assert torch.equal(layer(ids), dequantize(table, torch.bfloat16)[ids] * 8)
    layer.switch(3)
    assert torch.equal(layer(ids), dequantize(slice_repack(table, 3), torch.bfloat16)[ids] * 8)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("bias", [True, False])
def test_fused_layers_take_one_call(mode: type[torch.no_grad], bias: bool) -> None:
    members = fused(bias)
    with mode():
        for shape in ((1, 1, 64), (3, 5, 64), (7, 64)):
            x = torch.randn(shape)
            reset_calls()
            found = [m(x) for m in members]
            assert kernel_calls() == 1
            assert all(same(y, exact(m, x)) for m, y in zip(members, found, strict=True))
            assert found[1].reshape(-1).shape == (x.numel() // 64 * 16,)


def test_fused_layers_are_right_in_any_order_with_other_inputs_between_and_after_errors() -> None:
    q, k, v = fused()
    a, b = torch.randn(2, 64), torch.randn(2, 64)
    for layer, x in [(v, a), (q, b), (k, a), (k, a), (q, a), (q, b), (v, b), (k, b), (q, a)]:
        assert same(layer(x), exact(layer, x))
    assert same(q(a), exact(q, a))
    with pytest.raises(ValueError, match="expected"):
        k(torch.randn(2, 63))
    assert same(v(a), exact(v, a))


def test_an_input_that_was_written_to_is_another_input() -> None:
    q, k, _ = fused()
    x = torch.randn(2, 64)
    q(x)
    x.mul_(2)
    assert same(k(x), exact(k, x))


def test_fused_layers_of_different_slices_run_by_themselves() -> None:
    q, k, v = fused()
    x = torch.randn(2, 64)
    q(x)
    for bits in ((4, 4, 4), (4, 8, 2)):
        for layer, width in zip((q, k, v), bits, strict=True):
            layer.switch(width)
        assert all(same(m(x), exact(m, x)) for m in (q, k, v))
    k.switch(rearrange(matrix(16, bits=3), "cpu"))
    assert k.fused is None
    assert all(same(m(x), exact(m, x)) for m in (q, k, v))


def test_a_matrix_that_was_replaced_in_a_group_stays_when_the_model_moves() -> None:
    q, k, v = fused()
    other = rearrange(matrix(32, bits=4, seed=5), "cpu")
    q.switch(other)
    k.move(torch.device("cpu"))
    assert torch.equal(q.weight, dequantize(other))
    assert {q.fused, k.fused, v.fused} == {None}
    x = torch.randn(2, 64)
    assert all(same(m(x), exact(m, x)) for m in (q, k, v))


def test_rows_that_no_layout_shares_stay_apart_and_right() -> None:
    members = fused(sizes=(20, 9, 16))
    x = torch.randn(2, 64)
    assert all(same(m(x), exact(m, x)) for m in members)


def test_a_model_of_them_is_copied_cast_and_saved_like_any_other() -> None:
    members = nn.ModuleDict(dict(zip("qkv", fused(), strict=True)))
    x = torch.randn(2, 64)
    copied = copy.deepcopy(members)
    assert all(torch.equal(copied[name](x), members[name](x)) for name in "qkv")
    state = members.state_dict()
    assert set(state) == {"q.weight", "k.weight", "k.bias", "v.weight", "v.bias"}
    half = copied.to(torch.float16)
    assert half["k"](x.half()).dtype == half["k"].weight.dtype == half["k"].bias.dtype == torch.float16
    assert half["k"].matrix.scales.dtype == torch.bfloat16
    assert torch.equal(state["q.weight"].half(), half["q"].weight)


def test_it_compiles_in_one_graph() -> None:
    members = fused()
    x = torch.randn(2, 64)

    def run(x: Tensor) -> Tensor:
        return torch.cat([m(x) for m in members], -1)

    with torch.no_grad():
        expected = run(x)
        assert same(torch.compile(run, fullgraph=True, backend="eager")(x), expected)
