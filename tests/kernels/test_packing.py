"""Codes survive packing, at every width and in every shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moopt_kernels import pack, packed_columns, unpack


@given(st.integers(1, 8), st.integers(0, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_a_round_trip_is_exact(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_columns(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert pack(torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), 2).tolist() == [[0b00_11_10_01]]
    assert pack(torch.tensor([[5, 7, 1]], dtype=torch.uint8), 3).tolist() == [[0b01_111_101, 0b0]]


def test_a_code_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="Got the code 9; expected codes below 8 at 3 bits"):
        pack(torch.tensor([[9]], dtype=torch.uint8), 3)


@pytest.mark.parametrize("bits", [0, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 8"):
        pack(torch.zeros(1, 1, dtype=torch.uint8), bits)


def test_bytes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected uint8, \[n, 3\], for 8 codes of 3 bits"):
        unpack(torch.zeros(1, 4, dtype=torch.uint8), 3, 8)
