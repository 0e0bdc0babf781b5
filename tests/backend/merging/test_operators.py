"""Merging tensors: what each method is for, at its ends and in between."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moopt.backend.merging import METHODS, operators
from moopt.errors import MergeError

FROM_BASE = [name for name, method in METHODS.items() if method.from_base]
THINNING = [name for name, method in METHODS.items() if method.thins]
seeds = st.integers(0, 2**31)


def tensors(seed: int, count: int = 3, shape: tuple[int, ...] = (7, 5)) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(count)]


def merged(name: str, base: Tensor | None, models: list[Tensor], weights: list[float], density: float = 1.0) -> Tensor:
    draws = [operators.seeded(i) for i in range(len(models))]
    return operators.merge(name, base, models, weights, [density] * len(models), draws)


@pytest.mark.parametrize("name", sorted(METHODS))
@given(seed=seeds)
def test_a_merge_of_equal_models_is_that_model(name: str, seed: int):
    base, (model, _, _) = tensors(seed)
    assert torch.allclose(merged(name, base, [model, model], [0.5, 0.5]), model, atol=1e-6)


@pytest.mark.parametrize("name", FROM_BASE)
def test_weights_of_zero_leave_the_base(name: str):
    base, models = tensors(0)
    assert torch.equal(merged(name, base, models, [0.0, 0.0, 0.0], 0.5), base)


@given(seed=seeds)
def test_task_arithmetic_is_a_weighted_sum_of_differences(seed: int):
    base, models = tensors(seed)
    expected = base + 0.2 * (models[0] - base) - 0.4 * (models[1] - base) + 1.1 * (models[2] - base)
    assert torch.allclose(merged("task_arithmetic", base, models, [0.2, -0.4, 1.1]), expected, atol=1e-6)


@given(seed=seeds)
def test_the_mean_is_of_the_models_alone(seed: int):
    base, models = tensors(seed)
    expected = (models[0] + 3 * models[1]) / 4
    assert torch.allclose(merged("linear", None, models[:2], [1.0, 3.0]), expected, atol=1e-6)
    assert torch.allclose(merged("linear", base, models[:2], [0.25, 0.75]), expected, atol=1e-6)


@given(seed=seeds, t=st.floats(0, 1))
def test_slerp_stays_on_the_circle_of_directions_of_equal_length(seed: int, t: float):
    _, (a, b, _) = tensors(seed)
    a, b = a / a.norm(), b / b.norm()
    found = merged("slerp", None, [a, b], [1 - t, t])
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)
    angles = [float(torch.acos((x * y).sum().clamp(-1, 1))) for x, y in ((a, found), (a, b))]
    assert angles[0] == pytest.approx(t * angles[1], abs=2e-3)


def test_ties_keeps_the_largest_and_lets_the_sign_that_weighs_more_win():
    base = torch.zeros(4)
    models = [torch.tensor([4.0, -1.0, 0.1, 2.0]), torch.tensor([-1.0, 3.0, 0.2, 2.0])]
    # half of each is kept: 4 and 2 of the first, 3 and 2 of the second; nothing at the third place
    assert torch.allclose(merged("ties", base, models, [1.0, 1.0], 0.5), torch.tensor([4.0, 3.0, 0.0, 2.0]))
    # all is kept: -1 and -1 lose against 4 and 3; means are over those that agree
    assert torch.allclose(merged("ties", base, models, [1.0, 1.0]), torch.tensor([4.0, 3.0, 0.15, 2.0]))


def test_breadcrumbs_drops_both_tails():
    base, model = torch.zeros(200), torch.arange(1.0, 201.0)
    kept = merged("breadcrumbs", base, [model, base], [1.0, 1.0], 0.5).nonzero()[:, 0]
    assert kept.tolist() == list(range(98, 198))  # 100 of 200 are kept, the 2 largest are not among them


def test_nothing_is_kept_upside_down_where_no_tail_is_cut():
    base, model = torch.zeros(50), torch.arange(1.0, 51.0)  # one percent of 50 is none: the trap of `[a:-0]`
    kept = merged("breadcrumbs", base, [model, base], [1.0, 1.0], 0.5).nonzero()[:, 0]
    assert kept.tolist() == list(range(25, 50))


@pytest.mark.parametrize("name", [n for n in THINNING if METHODS[n].rescales])
def test_what_is_kept_has_the_length_of_the_whole(name: str):
    base, models = tensors(1, count=2, shape=(40, 30))
    alone = merged(name, base, [models[0], base], [1.0, 0.0], 0.4) - base
    assert float(alone.abs().sum()) == pytest.approx(float((models[0] - base).abs().sum()), rel=1e-4)
    assert 0.3 < float((alone.abs() > 1e-6).float().mean()) < 0.5


def test_della_drops_small_ones_rather():
    base, model = torch.zeros(1, 4000), torch.linspace(0.01, 1, 4000).reshape(1, -1)
    kept = (merged("della_linear", base, [model, base], [1.0, 0.0], 0.5) != 0)[0].float()
    assert float(kept[:1000].mean()) == pytest.approx(0.39, abs=0.05)
    assert float(kept[-1000:].mean()) == pytest.approx(0.61, abs=0.05)


@pytest.mark.parametrize("shape", [(6, 50), (3, 40, 2)])
def test_ranks_are_those_of_a_stable_sort(shape: tuple[int, ...]):
    magnitudes = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(0)).double() / 7
    assert torch.equal(torch.from_numpy(operators._ascending(magnitudes)), magnitudes.argsort(dim=1, stable=True))


@pytest.mark.parametrize("name", THINNING)
@pytest.mark.parametrize("density", [0.0, 0.001, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (4, 1), (2, 3, 4)])
def test_every_shape_and_density_gives_numbers(name: str, density: float, shape: tuple[int, ...]):
    base, models = tensors(2, shape=shape)
    found = merged(name, base, models, [0.3, 0.3, 0.4], density)
    assert found.shape == shape
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("density", [0.6, 1.0])
def test_large_tensors_are_merged_as_small_ones_are(name: str, density: float, monkeypatch: pytest.MonkeyPatch):
    base, models = tensors(5, count=2, shape=(9, 8))
    turned = [models[0], models[1].T.contiguous().T]
    whole = merged(name, base, turned, [0.3, 0.6], density)
    monkeypatch.setattr(operators, "PIECE", 7)
    assert torch.allclose(merged(name, base, turned, [0.3, 0.6], density), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_empty_tensor_stays_empty(name: str, density: float):
    base, models = tensors(6, count=2, shape=(0, 3))
    assert merged(name, base, models, [0.3, 0.6], density).shape == (0, 3)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_results_have_the_type_of_the_base_and_are_rounded_once(name: str):
    base, models = tensors(3, count=2)
    halves = [each.bfloat16() for each in models]
    found = merged(name, base.bfloat16(), halves, [0.3, 0.7], 0.6)
    wide = merged(name, base.bfloat16().float(), [each.float() for each in halves], [0.3, 0.7], 0.6)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wide.bfloat16())


def test_what_a_method_lacks_is_said():
    base, models = tensors(4)
    with pytest.raises(MergeError, match="no method of merging 'tise'; expected one of linear, slerp"):
        merged("tise", base, models, [1, 1, 1])
    with pytest.raises(MergeError, match="ties merges differences from a base; got none"):
        merged("ties", None, models, [1, 1, 1])
    with pytest.raises(MergeError, match="slerp merges 2 models; got 3"):
        merged("slerp", None, models, [1, 1, 1])


def test_slerp_goes_half_way_where_weights_cancel() -> None:
    assert operators.slerp_share(0.0, 0.0) == operators.slerp_share(0.5, -0.5) == 0.5
    assert operators.slerp_share(1.0, 3.0) == 0.75


@pytest.mark.parametrize("shape", [(20_000, 1), (20_000, 1, 1)])
def test_della_keeps_its_share_of_rows_of_one_number(shape: tuple[int, ...]) -> None:
    base, models = tensors(2, 1, shape)
    kept = (merged("della_linear", base, models, [1.0], 0.1) != base).float().mean()
    assert kept == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "linear"])
def test_results_do_not_depend_on_threads(name: str) -> None:
    base, models = tensors(4, 2, (300, 700))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = merged(name, base, models, [0.5, 0.7], 0.4)
        torch.set_num_threads(4)
        assert torch.equal(merged(name, base, models, [0.5, 0.7], 0.4), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_types_may_differ(name: str) -> None:
    base, (a, b) = tensors(3, count=2)
    assert merged(name, base, [a.double(), b.half()], [0.3, 0.6], 0.5).dtype == base.dtype


def test_doubles_keep_their_precision() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    assert torch.allclose(merged("ties", torch.zeros_like(a), [a, a], [0.3, 0.4]), a, rtol=1e-15)


@pytest.mark.parametrize("name", ["slerp", "dare_linear"])
def test_large_numbers_do_not_overflow_on_the_way(name: str) -> None:
    base, models = tensors(5, 2)
    assert merged(name, base, [1e37 * each for each in models], [0.5, 0.5], 0.5).isfinite().all()
