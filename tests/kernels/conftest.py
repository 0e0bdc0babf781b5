"""Random quantized matrices, and the layouts whose kernels can run on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from moopt_kernels import KernelError, Prepacked, dispatch, prepack, reset_calls


@dataclass(frozen=True)
class Matrix:
    """A random quantized matrix and its exact values, in float64."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group_size: int

    def prepack(self, layout: dispatch.Layout, device: str = "cpu") -> Prepacked:
        zeros = None if self.zeros is None else self.zeros.to(device)
        return prepack(self.codes.to(device), self.scales.to(device), zeros, self.bits, self.group_size, layout)

    def values(self, slice_bits: int | None = None) -> Tensor:
        """Row by row as the contract states it, on Python's terms rather than the reference's."""
        codes, middle = self.codes.double(), 2.0 ** (self.bits - 1)
        if slice_bits is not None:
            step = 2 ** (8 - slice_bits)
            codes = ((codes / step + 0.5).floor().clamp(0, 2**slice_bits - 1)) * step
        group = torch.arange(codes.shape[1]) // self.group_size
        zeros = middle if self.zeros is None else self.zeros.double()[:, group]
        return self.scales.double()[:, group] * (codes - zeros)


Draw = Callable[..., Matrix]


@pytest.fixture(scope="session")
def draw() -> Draw:
    def made(n: int, k: int, bits: int, group_size: int, symmetric: bool = False, seed: int = 0) -> Matrix:
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 2**bits, (n, k), generator=generator, dtype=torch.uint8)
        shape = (n, -(-k // group_size))
        scales = (0.01 + 0.02 * torch.rand(shape, generator=generator)).bfloat16()
        zeros = None if symmetric else torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
        return Matrix(codes, scales, zeros, bits, group_size)

    return made


@pytest.fixture(params=["plain", "cpu"], scope="session")
def registered(request: pytest.FixtureRequest) -> dispatch.Layout:
    """A layout, with all that this machine can."""
    name: dispatch.Layout = request.param
    try:
        dispatch.home(name)
    except KernelError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(params=["plain", "cpu", "cpu-avx512", "cpu-avx2"], scope="session")
def layout(request: pytest.FixtureRequest) -> Iterator[dispatch.Layout]:
    """A layout, and on CPUs each instruction set that this machine has."""
    name, _, most = request.param.partition("-")
    try:
        home = dispatch.home(name)
    except KernelError as error:
        pytest.skip(str(error))
    if most and home.limit(most) != most:
        home.limit("")
        pytest.skip(f"this CPU has no {most}")
    yield name
    if most:
        home.limit("")


@pytest.fixture(autouse=True)
def from_zero() -> None:
    reset_calls()


@pytest.fixture
def poisoned() -> Callable[[int], None]:
    """Leave NaN in memory that the next results are likely to be allocated from."""

    def poison(nbytes: int) -> None:
        for size in (nbytes, 2 * nbytes):
            torch.full((size,), 255, dtype=torch.uint8)

    return poison
