"""From a profile to groups: errors of single layers, the pairs that are worth having, layers that are alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from moopt.backend.kv import (
    KIVI,
    Group,
    Pair,
    Preset,
    Profile,
    Scheme,
    cluster,
    load_preset,
    packed_cache,
    profile,
    prune,
)
from moopt.backend.kv.groups import check, of_mapping
from moopt.errors import BackendError, QuantizationError
from moopt_kernels import kv_append, kv_cache, kv_dequantize
from tests.backend.conftest import SMALL, make_model

IDS = torch.randint(1, 320, (2, 80), generator=torch.Generator().manual_seed(0))
SHORT = Scheme(8, 8)


def made(fisher: list[list[float]], names: str = "KV2 K2V4 K4V2 KV4") -> Profile:
    """A profile with these errors [layers, pairs], and none of the rest."""
    pairs = tuple(map(Pair.of, names.split()))
    table = np.array(fisher)
    return Profile(pairs, *[0 * table] * 5, table)


def test_a_profile_is_of_each_layer_by_itself() -> None:
    model = make_model("llama")
    found = profile(model, IDS, ["KV16", "K2V4", "K4V2", "KV8"], SHORT)
    assert [str(pair) for pair in found.pairs] == ["K2V4", "K4V2", "KV8", "KV16"]
    assert len(found) == 2
    for name in ("e_k", "e_v", "e_a", "e_o", "o_norm", "fisher"):
        assert (found.of(name)[:, 3] == 0).all()
        assert (found.of(name)[:, 2] < found.of(name)[:, :2].max(1)).all()
    assert (found.e_k[:, 0] > found.e_k[:, 1]).all()
    assert (found.e_v[:, 0] < found.e_v[:, 1]).all()
    assert model.config._attn_implementation == "sdpa"
    # the same by hand, of the second layer
    taken: dict[str, Any] = {}
    attention = model.model.layers[1].self_attn
    hook = attention.register_forward_pre_hook(lambda _, args, kwargs: taken.update(kwargs), with_kwargs=True)
    with torch.inference_mode():
        model.model(IDS[:1])
    hook.remove()
    states, (cos, sin) = taken["hidden_states"], taken["position_embeddings"]
    q, k, v = (
        part(states).view(1, 80, -1, 16).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = (x * cos[:, None] + torch.cat([-x[..., 8:], x[..., :8]], -1) * sin[:, None] for x in (q, k))
    cache = kv_cache(k, 2, 4, 8, 8)
    kv_append(cache, k, v)
    exact, moved = (
        scaled_dot_product_attention(q, *pair, is_causal=True, enable_gqa=True)
        for pair in ((k, v), kv_dequantize(cache))
    )
    alone = profile(model, IDS[:1], ["K2V4"], SHORT)
    assert alone.o_norm[1, 0] == pytest.approx(float((exact - moved).norm() / exact.norm()), rel=1e-4)


def test_padding_and_other_batches_do_not_matter() -> None:
    model = make_model("qwen2")
    both = profile(model, IDS, ["KV2"], SHORT)
    each = [profile(model, ids, ["KV2"], SHORT) for ids in IDS.split(1)]
    assert both.e_o == pytest.approx((each[0].e_o + each[1].e_o) / 2)


def test_pairs_that_another_beats_are_left_out() -> None:
    table = made([[0.4, 0.2, 0.3, 0.1], [0.4, 0.3, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4], [0.4, 0.5, 0.1, 0.2]])
    named = [" ".join(map(str, pairs)) for pairs in prune(table)]
    assert named == ["KV2 K2V4 KV4", "KV2 K2V4 KV4", "KV2", "KV2 K4V2"]
    with pytest.raises(BackendError, match="Got the error 'e_x'; expected one of e_k, e_v, e_a, e_o, o_norm, fisher"):
        prune(table, "e_x")


def test_layers_that_are_alike_are_together_and_each_is_somewhere() -> None:
    rows = [
        [0.4, 0.2, 0.3, 0.1],
        [0.43, 0.2, 0.3, 0.1],
        [0.8, 0.2, 0.3, 0.1],
        [0.46, 0.2, 0.3, 0.1],
        [0.4, 0.3, 0.2, 0.1],
    ]
    table = made(rows)
    found = cluster(table, prune(table), eps=0.05)
    assert [group.layers for group in found] == [(0, 1, 3), (2,), (4,)]  # 0 and 3 are linked by 1
    assert [group.name for group in found] == ["0-1,3", "2", "4"]
    check(found, range(5))
    alone = cluster(table, prune(table), clusters="none")
    assert [group.layers for group in alone] == [(n,) for n in range(5)]
    assert [group.layers for group in cluster(table, prune(table), 0.05, layers=[1, 2, 3])] == [(1, 3), (2,)]
    everything = [table.pairs] * 5
    assert [group.layers for group in cluster(table, everything, eps=10)] == [(0, 1, 2, 3, 4)]
    with pytest.raises(BackendError, match="Got the pairs of 2 layers; the profile has 5"):
        cluster(table, everything[:2])
    with pytest.raises(BackendError, match="Got the pair KV8; the profile has KV2, K2V4"):
        cluster(table, [(Pair(8, 8),)] * 5)
    for eps in (-0.1, "0.2", float("nan"), None):
        with pytest.raises(BackendError, match="expected a number from 0"):
            cluster(table, everything, eps=eps)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="Got clusters='k-means'"):
        cluster(table, everything, clusters="k-means")  # type: ignore[arg-type]


def test_groups_that_are_no_partition_are_refused() -> None:
    pair = (Pair(4, 4),)
    with pytest.raises(BackendError, match="Layer 1 is in several groups"):
        check([Group((0, 1), pair), Group((1, 2), pair)], range(3))
    with pytest.raises(BackendError, match="Layer 2 is in no group"):
        check([Group((0, 1), pair)], range(3))
    with pytest.raises(BackendError, match="Layer 7 is none whose cache can be packed"):
        check([Group((0, 1, 2, 7), pair)], range(3))


def test_groups_are_written_by_their_names() -> None:
    found = of_mapping({"0": ["KV8", (4, 4)], "1-3,5": ["K4V2"], "4": [2]})
    assert [group.layers for group in found] == [(0,), (1, 2, 3, 5), (4,)]
    assert [group.name for group in found] == ["0", "1-3,5", "4"]
    assert found[0].pairs == (Pair(4, 4), Pair(8, 8))
    assert of_mapping(found) == found
    for bad in (
        {"a": ["KV4"]},
        {"0-": ["KV4"]},
        {"0": "KV4"},
        {"0": []},
        {"3-1": ["KV4"]},
        {"²": ["KV4"]},
        ["KV4"],
        None,
        5,
    ):
        with pytest.raises(BackendError, match="expected"):
            of_mapping(bad)  # type: ignore[arg-type]


def test_a_preset_is_what_was_saved_and_makes_a_cache(tmp_path: Path) -> None:
    kept = Preset((Pair(8, 4), Pair(2, 2)), Scheme(None, 16))
    assert load_preset(kept.save(tmp_path / "p.json")) == kept
    cache = packed_cache(make_model("llama"), kept)
    assert cache.pairs == kept.pairs
    assert cache.layers[0].scheme == kept.scheme
    whole = json.loads((tmp_path / "p.json").read_text())
    for text, message in (
        ("{", "cannot be read"), ("[]", "no preset of this version"), ('{"kind": "x"}', "no preset of this version"),
        (json.dumps(whole | {"scheme": {"group_size": None}}), "something missing or too much: 'residual_length'"),
        (json.dumps(whole | {"scheme": {**whole["scheme"], "axis": 1}}), "something missing or too much"),
        (json.dumps(whole | {"scheme": "kivi"}), "something missing or too much"),
        (json.dumps(whole | {"pairs": "KV4"}), "Got the pairs 'KV4'; expected a list"),
        (json.dumps(whole | {"pairs": []}), "expected a list with the pair of each layer"),
    ):  # fmt: skip
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BackendError, match=message):
            load_preset(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text((tmp_path / "p.json").read_text().replace("KV2", "KV3"))
    with pytest.raises(QuantizationError, match="3"):
        load_preset(tmp_path / "bad.json")
    with pytest.raises(BackendError, match="cannot be read"):
        load_preset(tmp_path / "none.json")


def test_a_preset_is_written_in_many_ways() -> None:
    kept = Preset(["K8V4", 2], "kivi")  # type: ignore[arg-type]
    assert kept == Preset((Pair(8, 4), Pair(2, 2)), KIVI)
    with pytest.raises(QuantizationError, match="expected one of kivi, per-token"):
        Preset((Pair(8, 4),), ["kivi"])  # type: ignore[arg-type]


def test_what_cannot_be_profiled_is_refused() -> None:
    model = make_model("llama")
    type(model)._supports_attention_backend, before = False, type(model)._supports_attention_backend
    try:
        with pytest.raises(BackendError, match="does not let its attention be replaced"):
            profile(model, IDS, ["KV4"], KIVI)
    finally:
        type(model)._supports_attention_backend = before


def test_attention_that_a_profile_would_get_wrong_is_refused() -> None:
    config = transformers.Gemma2Config(**SMALL, head_dim=16, attn_logit_softcapping=50.0, sliding_window=64)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    before = model.config._attn_implementation
    with pytest.raises(BackendError, match="Gemma2ForCausalLM's attention has a softcap"):
        profile(model, IDS[:1], ["KV4"], SHORT)
    assert model.config._attn_implementation == before
