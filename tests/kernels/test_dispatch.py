"""MOOPT_KERNELS is obeyed or refused, never ignored; what ran is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moopt_kernels import KernelError, calls, choose_layout, quantized_linear, reset_calls


def test_reference_asks_for_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_KERNELS", "reference")
    assert choose_layout("cpu") == "plain"
    assert choose_layout("cuda") == "plain"


def test_an_unknown_override_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_KERNELS", "fast")
    with pytest.raises(KernelError, match="MOOPT_KERNELS=fast; expected reference, cpu, triton"):
        choose_layout("cpu")


def test_an_override_that_cannot_be_honoured_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOPT_KERNELS", "cpu")
    with pytest.raises(KernelError, match="MOOPT_KERNELS=cpu cannot be honoured on cuda: these kernels run on a CPU"):
        choose_layout("cuda")


def test_calls_tell_which_implementation_ran(draw: Any) -> None:
    weight = draw(8, 16, 4, 16).prepack("plain")
    quantized_linear(torch.ones(3, 16), weight)
    quantized_linear(torch.ones(16), weight)
    assert calls() == {("quantized_linear", "reference"): 2}
    reset_calls()
    assert calls() == {}
