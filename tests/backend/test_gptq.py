"""GPTQ and MatGPTQ: what the papers' formulas give, column by column in float64, and what a user relies on."""

from __future__ import annotations

import logging
import pickle
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from torch import Tensor

from moopt.backend import quantizers
from moopt.backend.inputs import Inputs
from moopt.backend.quantizers import GPTQ, RTN, MatGPTQ, Quantized, Quantizer
from moopt.backend.quantizers.gptq import SHARES
from moopt.errors import QuantizationError
from moopt_kernels import prepack, quantized_linear, sliced_linear

GROUP = 16


def layer(seed: int, n: int = 12, k: int = 64, tokens: int = 200) -> tuple[Tensor, Inputs]:
    """A random matrix n x k and inputs of very different strength that go together."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, k, generator=generator) @ (torch.randn(k, k, generator=generator) * 0.3 + torch.eye(k))
    x *= torch.rand(k, generator=generator) * 3
    return torch.randn(n, k, generator=generator) * 0.05, Inputs("layer", x.T @ x / tokens, tokens)


def output_error(found: Tensor, weight: Tensor, inputs: Inputs) -> float:
    """The mean square of what changes in the output, as a share of the output's."""
    error, moment = (found - weight).double(), inputs.moment.double()
    return float(((error @ moment) * error).sum() / ((weight.double() @ moment) * weight.double()).sum())


def published(weight: Tensor, moment: Tensor, bits: int, shares: tuple[float, ...]) -> Tensor:
    """Frantar et al. 2022, equations 2 and 3: each column alone, the Cholesky factor from numpy, no blocks."""
    w, h = weight.double().numpy().copy(), 2 * moment.double().numpy()
    upper = np.linalg.cholesky(np.linalg.inv(h + 0.01 * np.diag(h).mean() * np.eye(len(h)))).T
    top, result = 2**bits - 1, np.empty_like(w)
    for j in range(w.shape[1]):
        if j % GROUP == 0:
            group, cost = w[:, j : j + GROUP], np.diag(upper)[j : j + GROUP] ** -2.0
            low, high = np.minimum(group.min(1), 0), np.maximum(group.max(1), 0)
            least = np.full(len(w), np.inf)
            scale, zero = np.ones(len(w)), np.zeros(len(w))
            for share in shares:
                s = torch.tensor((high - low) * share / top).bfloat16().double().numpy()
                z = np.clip(np.round(-low * share / s), 0, top)
                rounded = np.clip(np.round(group / s[:, None] + z[:, None]), 0, top) - z[:, None]
                loss = (cost * (group - s[:, None] * rounded) ** 2).sum(1)
                scale, zero = np.where(loss < least, s, scale), np.where(loss < least, z, zero)
                least = np.minimum(loss, least)
        result[:, j] = scale * (np.clip(np.round(w[:, j] / scale + zero), 0, top) - zero)
        w[:, j:] -= np.outer((w[:, j] - result[:, j]) / upper[j, j], upper[j, j:])
    return torch.from_numpy(result)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_gptq_is_the_published_recursion(bits: int, seed: int) -> None:
    weight, inputs = layer(seed, k=192)
    found = GPTQ(act_order=False).quantize(weight, bits, GROUP, inputs).dequantize()
    expected = published(weight, inputs.moment, bits, SHARES)
    assert abs(output_error(found, weight, inputs) - output_error(expected, weight, inputs)) < 1e-5


def test_an_order_of_the_inputs_is_undone_in_codes_and_scales() -> None:
    weight, inputs = layer(0)
    order = GPTQ().quantize(weight, 3, GROUP, inputs)
    strength = inputs.moment.diagonal().view(-1, GROUP)
    within = strength.argsort(dim=1, descending=True)
    places = torch.arange(64).view(-1, GROUP).gather(1, within)[strength.sum(1).argsort(descending=True)].flatten()
    moved = Inputs("moved", inputs.moment[places][:, places].contiguous(), inputs.tokens)
    plain = GPTQ(act_order=False).quantize(weight[:, places].contiguous(), 3, GROUP, moved)
    assert torch.equal(order.dequantize()[:, places], plain.dequantize())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_calibrated_rounding_loses_less_in_the_output(bits: int) -> None:
    weight, inputs = layer(1, k=128)
    errors = [
        output_error(made.quantize(weight, bits, GROUP, inputs).dequantize(), weight, inputs)
        for made in (GPTQ(), RTN())
    ]
    assert errors[0] < 0.7 * errors[1]


def test_slices_of_the_parent_are_the_formulas_and_the_kernels() -> None:
    weight, inputs = layer(2)
    parent = MatGPTQ().quantize(weight, 8, GROUP, inputs)
    assert parent.zeros is not None
    packed = prepack(parent.codes, parent.scales, parent.zeros, 8, GROUP, "plain")
    x = torch.randn(5, 64)
    q = parent.codes.int()
    for r in (2, 3, 4, 5, 6):
        s = (((q >> (8 - r)) + ((q >> (7 - r)) & 1)).clamp(0, 2**r - 1)) << (8 - r)
        expected = parent.scales.float().repeat_interleave(GROUP, 1) * (
            s - parent.zeros.int().repeat_interleave(GROUP, 1)
        )
        sliced = MatGPTQ().quantize(weight, r, GROUP, inputs)
        assert torch.equal(sliced.dequantize(), expected)
        assert torch.equal(sliced_linear(x, packed, r), torch.nn.functional.linear(x, expected))
        again = prepack(sliced.codes, sliced.scales, sliced.zeros, r, GROUP, "plain", sliced.shift)
        assert torch.equal(sliced_linear(x, packed, r), quantized_linear(x, again))


def test_one_parent_serves_all_widths() -> None:
    weight, inputs = layer(3, n=24, k=256, tokens=2000)

    def error(made: Quantized) -> float:
        return output_error(made.dequantize(), weight, inputs)

    sliced = GPTQ().quantize(weight, 8, GROUP, inputs)
    for bits, most in ((3, 1.5), (4, 2.5)):
        found = error(MatGPTQ().quantize(weight, bits, GROUP, inputs))
        assert found < 0.7 * error(sliced.sliced(bits))
        assert found < most * error(GPTQ().quantize(weight, bits, GROUP, inputs))
    at_four, at_eight = (error(MatGPTQ().quantize(weight, bits, GROUP, inputs)) for bits in (4, 8))
    assert at_eight < 0.5 * at_four
    better_at_two = MatGPTQ(widths=(2, 3, 4, 8), weights=(1, 1, 1, 3)).quantize(weight, 2, GROUP, inputs)
    assert error(better_at_two) < error(MatGPTQ().quantize(weight, 2, GROUP, inputs))


def test_dead_inputs_and_a_single_token_are_no_trouble() -> None:
    weight, inputs = layer(4)
    moment = inputs.moment.clone()
    moment[5], moment[:, 5] = 0, 0
    moment[GROUP : 2 * GROUP], moment[:, GROUP : 2 * GROUP] = 0, 0
    dead = Inputs("dead", moment, 200)
    x = torch.randn(64)
    single = Inputs("single", torch.outer(x, x), 1)
    nothing = Inputs("nothing", torch.zeros(64, 64), 7)
    for given in (dead, single, nothing):
        for made in (GPTQ(), MatGPTQ()):
            found = made.quantize(weight, 4, GROUP, given).dequantize()
            assert found.isfinite().all()
            assert (found - weight).abs().max() < 0.3 * weight.abs().max()
    assert output_error(GPTQ().quantize(weight, 4, GROUP, single).dequantize(), weight, single) < 1e-5


def test_without_inputs_nothing_is_made_up_for() -> None:
    weight, _ = layer(5)
    found = GPTQ().quantize(weight, 3, GROUP)
    assert (found.dequantize() - weight).norm() <= RTN().quantize(weight, 3, GROUP).dequantize().sub(weight).norm()


def test_a_moment_that_is_hard_to_invert_gets_more_damping_or_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    weight, inputs = layer(6)
    bad = inputs.moment.clone()
    bad[0, 1] = bad[1, 0] = 4 * float(inputs.moment.diagonal().max())  # no second moment has this
    with caplog.at_level(logging.INFO, "moopt"):
        assert GPTQ().quantize(weight, 4, GROUP, Inputs("odd", bad, 9)).dequantize().isfinite().all()
        assert "The inputs of odd needed a damping of" in caplog.text
        rounded = GPTQ().quantize(weight, 4, GROUP, Inputs("hopeless", bad * torch.tensor(-1.0), 9))
    assert "The inputs of hopeless cannot be inverted; it is rounded to nearest" in caplog.text
    assert torch.equal(rounded.dequantize(), GPTQ().quantize(weight, 4, GROUP).dequantize())


def test_settings_are_part_of_the_name_in_the_store() -> None:
    assert RTN().key == "rtn-1"
    keys = {made.key for made in (GPTQ(), GPTQ(damping=0.05), MatGPTQ(), MatGPTQ(widths=(2, 8), weights=(1, 1)))}
    assert len(keys) == 4
    assert pickle.loads(pickle.dumps(GPTQ(damping=0.05))) == GPTQ(damping=0.05)


@pytest.mark.parametrize(
    "settings", [{"widths": (3, 9)}, {"widths": (3, 3, 8)}, {"widths": (), "weights": ()}, {"weights": (1, 0, 1)}]
)
def test_widths_and_weights_must_fit(settings: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(QuantizationError, match="expected widths of 1 to 8 bits"):
        MatGPTQ(**settings)  # type: ignore[arg-type]


class Halves(Quantizer):
    """A plug-in."""

    name = "halves"

    def quantize(self, weight: Tensor, bits: int, group_size: int, inputs: Inputs | None = None) -> Quantized:
        return quantizers.rtn(weight / 2, bits, group_size)


def test_plug_ins_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("halves", f"{__name__}:Halves", "moopt.quantizers"),
        EntryPoint("nothing", "builtins:dict", "moopt.quantizers"),
    ]
    monkeypatch.setattr(quantizers, "entry_points", lambda group: points)
    assert isinstance(quantizers.named("halves"), Quantizer)
    with pytest.raises(QuantizationError, match="builtins:dict gave dict; expected a Quantizer"):
        quantizers.named("nothing")
    with pytest.raises(QuantizationError, match="eora, bcq, halves, nothing"):
        quantizers.named("awq")
