"""What runs inside a compiled graph goes into it whole: no operator without a fake, nothing imported on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moopt_kernels import dequantize, dequantize_rows, dispatch, quantize_weight, slice_repack


def test_all_that_reads_a_matrix_compiles_whole(registered: dispatch.Layout, draw: Any) -> None:
    weight = draw(20, 96, 8, 32).prepack(registered)

    def every(rows: Tensor) -> list[Tensor]:
        sliced = slice_repack(weight, 3)
        found = [dequantize(weight), dequantize(sliced, torch.bfloat16), dequantize_rows(weight, rows)]
        return [*found, dequantize_rows(weight, rows, torch.bfloat16, 3), dequantize_rows(sliced, rows)]

    rows = torch.tensor([[3, 19], [0, 3]])
    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for found, expected in zip(compiled(rows), every(rows), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_quantizing_compiles_whole(registered: dispatch.Layout, symmetric: bool) -> None:
    def there_and_back(weight: Tensor) -> Tensor:
        return dequantize(quantize_weight(weight, 4, 32, symmetric, registered))

    weight = torch.randn(20, 90, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weight), there_and_back(weight))


@pytest.mark.parametrize("group", [7, 32, 200, 1000], ids=lambda g: f"g{g}")
def test_the_cpu_operators_pass_opcheck(draw: Any, group: int) -> None:
    dispatch.home("cpu")
    ops, (n, k) = torch.ops.moopt, (20, 300)
    matrix = draw(n, k, 8, group)
    weight = matrix.prepack("cpu")
    parts, numbers = (weight.codes, weight.scales, weight.zeros), (n, k, 8, group, 0)
    for op, arguments in [
        (ops.cpu_pack, (matrix.codes, 8, group)),
        (ops.cpu_unpack, (weight.codes, n, k, 8, group)),
        (ops.cpu_unstream, (matrix.prepack("plain").codes, k, 8)),
        (ops.cpu_repack, (weight.codes, n, k, group, 3)),
        (ops.cpu_quantize, (torch.randn(n, k), 3, group, True)),
        (ops.cpu_quantize, (torch.randn(n, k), 3, group, False)),
        (ops.cpu_dequantize, (*parts, *numbers, torch.bfloat16)),
        (ops.cpu_dequantize_rows, (*parts, torch.tensor([3, 19]), *numbers, 3, torch.float32)),
    ]:
        torch.library.opcheck(op.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_appending_passes_opcheck() -> None:
    dispatch.home("cpu")
    stores = [torch.zeros(1, 2, *shape) for shape in ((8, 8), (2, 16), (2, 16))]
    codes, scales, lows = stores[0].to(torch.uint8), stores[1].half(), stores[2].half()
    arguments = (torch.randn(1, 2, 4, 16), codes, scales, lows, 4, 4, 4)
    torch.library.opcheck(
        torch.ops.moopt.cpu_kv_append.default, arguments, test_utils=("test_schema", "test_faketensor")
    )
