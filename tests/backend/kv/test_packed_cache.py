"""A packed cache in transformers: fused attention gives what dequantizing gives, whatever generation does with it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache

from moopt.backend.kv import KIVI, PER_TOKEN, PackedCache, Pair, Scheme, packed_cache
from moopt.errors import BackendError, QuantizationError
from moopt_kernels import calls, kv_dequantize, reset_calls
from tests.backend.conftest import SMALL, make_model

IDS = torch.randint(1, 320, (3, 90), generator=torch.Generator().manual_seed(0))
PAIRS = ["K4V2", "K8V4"]
SHORT = Scheme(8, 8)
"""With groups so small that few tokens fill many of them."""


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny Llama, whose four heads share two of keys."""
    return make_model("llama")


def run(model: Any, cache: Any, ids: Tensor = IDS, steps: tuple[int, ...] = (90,), **rest: Any) -> Tensor:
    """Logits of tokens that come in steps."""
    parts, mask = [], rest.pop("attention_mask", None)
    at = cache.get_seq_length()
    with torch.inference_mode():
        for part in ids.split(list(steps), 1):
            at += part.shape[1]
            seen = None if mask is None else mask[:, :at]
            parts.append(model(part, past_key_values=cache, attention_mask=seen, **rest).logits)
    return torch.cat(parts, 1)


def both(model: Any, **how: Any) -> tuple[PackedCache, PackedCache]:
    arguments = {"pairs": PAIRS, "scheme": SHORT} | how
    return packed_cache(model, fused=True, **arguments), packed_cache(model, fused=False, **arguments)


@pytest.mark.parametrize("scheme", [KIVI, PER_TOKEN, SHORT], ids=["kivi", "per-token", "short"])
@pytest.mark.parametrize("steps", [(90,), (37, 40, 1, 1, 11), (88, 1, 1)], ids=["whole", "chunks", "tokens"])
def test_fused_logits_are_those_of_dequantizing(model: Any, scheme: Scheme, steps: tuple[int, ...]) -> None:
    fused, plain = both(model, scheme=scheme)
    reset_calls()
    found = run(model, fused, steps=steps)
    assert sum(calls().values()) >= 2 * len(steps)
    assert torch.allclose(found, run(model, plain, steps=steps), atol=1e-3)


def test_left_padding_is_not_looked_at(model: Any) -> None:
    mask = torch.ones_like(IDS)
    mask[1, :20] = mask[2, :61] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = []
    for cache in both(model):
        with torch.inference_mode():
            first = model(
                IDS[:, :70], attention_mask=mask[:, :70], position_ids=positions[:, :70], past_key_values=cache
            )
            rest = model(IDS[:, 70:], attention_mask=mask, position_ids=positions[:, 70:], past_key_values=cache)
        found.append(torch.cat([first.logits, rest.logits], 1)[mask.bool()])
    assert found[0].isfinite().all()
    assert torch.allclose(found[0], found[1], atol=1e-3)
    alone = packed_cache(model, "KV16", SHORT)
    with torch.inference_mode():
        logits = model(IDS[2:, 61:], past_key_values=alone).logits[0]
    exact = packed_cache(model, "KV16", SHORT)
    padded = run(model, exact, attention_mask=mask, position_ids=positions)
    assert torch.allclose(padded[2, 61:], logits, atol=1e-3)


@pytest.mark.parametrize("how", [
    {"num_beams": 3, "do_sample": False}, {"do_sample": False}, {"num_beams": 2, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 2},
], ids=["beams", "greedy", "both-beams", "sampled"])  # fmt: skip
def test_generation_is_that_of_dequantizing(model: Any, how: dict[str, Any]) -> None:
    found = []
    for cache in both(model):
        torch.manual_seed(0)
        out = model.generate(
            IDS[:2, :40], attention_mask=torch.ones(2, 40), past_key_values=cache, max_new_tokens=30, eos_token_id=319,
            pad_token_id=0, **how,
        )  # fmt: skip
        found.append(out)
    assert torch.equal(found[0], found[1])


def test_unpacked_generation_is_transformers_own(model: Any) -> None:
    how = {"attention_mask": torch.ones(2, 40), "max_new_tokens": 30, "num_beams": 3, "do_sample": False}
    plain = model.generate(IDS[:2, :40], past_key_values=DynamicCache(config=model.config), pad_token_id=0, **how)
    packed = model.generate(IDS[:2, :40], past_key_values=packed_cache(model, 16), pad_token_id=0, **how)
    assert torch.equal(plain, packed)


def test_assisted_generation_crops(model: Any) -> None:
    assistant = make_model("llama")
    assistant.lm_head.weight.data.add_(0.3 * torch.randn_like(assistant.lm_head.weight))  # so that it is often wrong
    how = {"attention_mask": torch.ones(1, 40), "max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(IDS[:1, :40], past_key_values=packed_cache(model, 16), **how)
    helped = model.generate(IDS[:1, :40], past_key_values=packed_cache(model, 16), assistant_model=assistant, **how)
    assert torch.equal(alone, helped)


@pytest.mark.parametrize("left", [89, 80, 45, 3, 0])
def test_a_cropped_cache_goes_on(model: Any, left: int) -> None:
    found = []
    for cache in both(model):
        run(model, cache)
        cache.crop(left - 90) if left < 90 else None
        assert cache.get_seq_length() == left
        found.append(run(model, cache, IDS[:, :20], (20,)))
    assert torch.allclose(found[0], found[1], atol=1e-3)


def test_what_was_not_packed_yet_is_cropped_without_a_trace(model: Any) -> None:
    cropped, plain = packed_cache(model, PAIRS), packed_cache(model, PAIRS)
    run(model, cropped)
    cropped.crop(-10)
    run(model, plain, IDS[:, :80], (80,))
    assert torch.allclose(run(model, cropped, IDS[:, 80:], (10,)), run(model, plain, IDS[:, 80:], (10,)), atol=1e-5)


def test_a_reset_cache_is_a_new_one(model: Any) -> None:
    cache = packed_cache(model, PAIRS, room=90)
    first = run(model, cache)
    size = cache.nbytes
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes) == (0, 0)
    assert torch.equal(run(model, cache), first)
    assert cache.nbytes == size


def test_sequences_are_selected_and_repeated(model: Any) -> None:
    cache = packed_cache(model, PAIRS)
    run(model, cache)
    kept = copy.deepcopy(cache)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    ids = IDS[[2, 2, 0, 0]]
    found = run(model, cache, ids[:, :5], (5,))
    expected = run(model, kept, IDS[:, :5], (5,))
    assert torch.allclose(found, expected[[2, 2, 0, 0]], atol=1e-5)
    kept.batch_select_indices(torch.tensor([True, False, True]))
    assert kept.layers[0].held.key_window.shape[0] == 2


def test_codes_are_the_same_however_tokens_came(model: Any) -> None:
    whole, steps = packed_cache(model, PAIRS), packed_cache(model, PAIRS)
    keys, values = torch.randn(2, 3, 2, 90, 16, generator=torch.Generator().manual_seed(0))
    for layer in range(2):
        whole.update(keys, values, layer)
        for k, v in zip(keys.split((37, 40, 1, 12), 2), values.split((37, 40, 1, 12), 2), strict=True):
            steps.update(k, v, layer)
        a, b = whole.layers[layer].held, steps.layers[layer].held
        for mine, other in ((a.keys, b.keys), (a.values, b.values)):
            assert torch.equal(mine.codes[:, :, : a.packed], other.codes[:, :, : b.packed])
        assert all(torch.equal(x, y) for x, y in zip(kv_dequantize(a), kv_dequantize(b), strict=True))


@pytest.mark.parametrize("scheme", [KIVI, PER_TOKEN, SHORT], ids=["kivi", "per-token", "short"])
@pytest.mark.parametrize("tokens", [5, 64, 90])
def test_the_bytes_are_those_of_the_formula(model: Any, scheme: Scheme, tokens: int) -> None:
    cache = packed_cache(model, PAIRS, scheme, room=tokens)
    run(model, cache, IDS[:, :tokens], (tokens,))
    itemsize = model.dtype.itemsize
    expected = sum(scheme.layer_bytes(pair, tokens, 2, 16, 3, itemsize) for pair in cache.pairs)
    assert cache.nbytes == expected


def test_four_bits_take_less_than_a_third() -> None:
    whole = KIVI.layer_bytes(Pair(16, 16), 2048, 3, 64)
    assert whole == 2 * 2048 * 3 * 64 * 2
    assert KIVI.layer_bytes(Pair(4, 4), 2048, 3, 64) <= 0.33 * whole
    assert PER_TOKEN.layer_bytes(Pair(4, 4), 2048, 3, 64) <= 0.29 * whole
    assert PER_TOKEN.effective_bits([Pair(8, 4)], 2048, 64) == pytest.approx(6 + 32 / 64)
    assert KIVI.effective_bits([Pair(16, 16)], 2048, 64) == 16


def test_other_caches_run_as_before(model: Any) -> None:
    expected = run(make_model("llama"), DynamicCache(config=model.config))
    packed_cache(model, 4)
    assert torch.allclose(run(model, DynamicCache(config=model.config)), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma", "phi", "gpt-neox", "granite", "mixtral", "opt"])
def test_models_of_other_families(family: str) -> None:
    other = make_model(family)
    exact = run(other, DynamicCache(config=other.config))
    assert torch.allclose(run(other, packed_cache(other, 16), steps=(60, 30)), exact, atol=1e-3)
    fused, plain = packed_cache(other, PAIRS), packed_cache(other, PAIRS, fused=False)
    assert torch.allclose(run(other, fused, steps=(60, 30)), run(other, plain, steps=(60, 30)), atol=1e-3)


def test_layers_that_forget_are_left_alone() -> None:
    config = transformers.MistralConfig(**SMALL, sliding_window=16)
    mistral = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(BackendError, match="Layer 0 caches as a DynamicSlidingWindowLayer, which cannot be packed"):
        packed_cache(mistral, 4)
    cache = packed_cache(mistral, "KV16")
    expected = run(mistral, DynamicCache(config=config))
    assert torch.allclose(run(mistral, cache), expected, atol=1e-5)
    assert cache.nbytes > 0


@pytest.mark.parametrize("config", [
    transformers.Gemma2Config(**SMALL, head_dim=16, attn_logit_softcapping=2.0, layer_types=["full_attention"] * 2),
    transformers.GptOssConfig(
        **SMALL, head_dim=16, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    ),
], ids=["softcap", "sinks"])  # fmt: skip
def test_attention_that_is_not_pytorchs_own_stays(config: Any) -> None:
    torch.manual_seed(0)
    other = transformers.AutoModelForCausalLM.from_config(config).eval()
    before = other.config._attn_implementation
    exact = run(other, DynamicCache(config=config))
    assert torch.allclose(run(other, packed_cache(other, 16), steps=(60, 30)), exact, atol=1e-5)
    assert other.config._attn_implementation == before
    with pytest.raises(BackendError, match="does not let its attention be replaced by PyTorch's own; say fused=False"):
        packed_cache(other, 4, fused=True)
    with pytest.raises(BackendError, match="Got fused='no'; expected True, False or 'auto'"):
        packed_cache(other, 4, fused="no")  # type: ignore[arg-type]


def test_what_other_layers_keep_is_counted() -> None:
    config = transformers.Qwen3NextConfig(
        **SMALL, head_dim=16, num_experts=4, num_experts_per_tok=2, linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=16, linear_value_head_dim=16, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    mixed = transformers.AutoModelForCausalLM.from_config(config).eval()
    cache = packed_cache(mixed, ["KV16", "KV4"])
    assert cache.nbytes == 0
    run(mixed, cache)
    first, second = cache.layers
    states = (*first.conv_states.values(), *first.recurrent_states.values())
    assert cache.nbytes == second.nbytes + sum(state.nbytes for state in states)


def test_an_encoder_beside_the_decoder_is_refused() -> None:
    config = transformers.T5Config(
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=320, decoder_start_token_id=0
    )
    with pytest.raises(BackendError, match="T5ForConditionalGeneration has an encoder"):
        packed_cache(transformers.AutoModelForSeq2SeqLM.from_config(config), 4)


def test_a_handle_keeps_what_it_has_while_its_layer_moves(model: Any) -> None:
    layer = packed_cache(model, PAIRS, SHORT).layers[0]
    keys, values = torch.randn(2, 3, 2, 90, 16, generator=torch.Generator().manual_seed(0))
    handle, _ = layer.update(keys, values)
    layer.device = torch.device("meta")  # stands for a GPU
    layer.prefetch()
    assert layer.held.keys.codes.is_meta
    assert layer.held.value_window.is_meta
    assert handle.cache.keys.codes.device == handle.cache.value_window.device == torch.device("cpu")


def test_other_attention_says_how_to_go_on(model: Any) -> None:
    cache = packed_cache(model, PAIRS)
    model.set_attn_implementation("sdpa")
    with pytest.raises(BackendError, match="fused=False"):
        run(model, cache)


@pytest.mark.parametrize(("named", "pair"), [
    ("K8V4", Pair(8, 4)), ("kv2", Pair(2, 2)), ((4, 16), Pair(4, 16)), (8, Pair(8, 8)), ([2, 4], Pair(2, 4)),
])  # fmt: skip
def test_pairs_are_written_in_many_ways(named: Any, pair: Pair) -> None:
    assert Pair.of(named) == pair
    assert Pair.of(str(pair)) == pair


@pytest.mark.parametrize("named", ["K3V4", "4", (3, 4), (4, 4, 4), None, 5, "K4", True, (4.0, 4)])
def test_what_is_no_pair_is_refused(named: Any) -> None:
    with pytest.raises(QuantizationError, match="Got"):
        Pair.of(named)


def test_schemes_that_cannot_be_packed_are_refused() -> None:
    for size in (24, 0, -8, 32.0, True):
        with pytest.raises(QuantizationError, match="expected a power of two, or None"):
            Scheme(size)  # type: ignore[arg-type]
    for window in (-1, 1.5, None):
        with pytest.raises(QuantizationError, match="expected a whole number from 0"):
            Scheme(32, window)  # type: ignore[arg-type]


def test_bad_arguments_are_refused(model: Any) -> None:
    with pytest.raises(BackendError, match="Got 3 pairs; the model has 2 layers"):
        packed_cache(model, [4, 4, 4])
    with pytest.raises(QuantizationError, match="Got the scheme 'kvi'; expected one of kivi, per-token"):
        packed_cache(model, 4, "kvi")
    for room in (-1, 1.5, None, True):
        with pytest.raises(BackendError, match="expected a whole number of tokens from 0"):
            packed_cache(model, 4, room=room)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="Got offload=True for a model on cpu"):
        packed_cache(model, 4, offload=True)
