"""Presets for other programs: as they read them, and refused where they cannot say what was measured."""

from __future__ import annotations

import pytest
import yaml

from moopt.backend.kv import KIVI, PER_TOKEN, Pair, Preset, Scheme
from moopt.backend.kv.exports import kvtuner, modelopt, vllm
from moopt.errors import BackendError


def preset(pairs: str, scheme: Scheme = KIVI) -> Preset:
    return Preset(tuple(map(Pair.of, pairs.split())), scheme)


def test_kvtuner_reads_a_mapping_of_layers() -> None:
    text = kvtuner(preset("K8V4 KV2"))
    assert yaml.safe_load(text) == {0: {"nbits_key": 8, "nbits_value": 4}, 1: {"nbits_key": 2, "nbits_value": 2}}
    assert text.startswith("# residual_length=32 q_group_size=32 axis_key=1 axis_value=0\n")
    assert "q_group_size=-1 axis_key=0" in kvtuner(preset("KV4", PER_TOKEN))
    with pytest.raises(BackendError, match="Layer 1 has the pair K16V4; KVTuner's presets know 2, 4 and 8 bits"):
        kvtuner(preset("KV4 K16V4"))
    with pytest.raises(BackendError, match="residual_length is a multiple of its q_group_size"):
        kvtuner(preset("KV4", Scheme(32, 5)))


def test_modelopt_reads_layers_by_name() -> None:
    found = modelopt(preset("KV8 K8V4 KV16 KV4"), approximate=True)
    assert found == {
        "kv_cache_quant_algo": "MIXED_PRECISION",
        "kv_cache_quantized_layers": {
            "model.layers.0.self_attn": {"quant_algo": "FP8"},
            "model.layers.1.self_attn": {"quant_algo": "FP8_K_NVFP4_V"},
            "model.layers.3.self_attn": {"quant_algo": "NVFP4"},
        },
        "kv_cache_schema_version": 1,
    }
    assert modelopt(preset("KV8 KV16"), "h.{}.attn", approximate=True)["kv_cache_quant_algo"] == "FP8"
    assert modelopt(preset("KV16"))["kv_cache_quant_algo"] is None
    for names in ("h.attn", "h.{}.{}", True):
        with pytest.raises(BackendError, match="a layer's number"):
            modelopt(preset("KV8 KV4"), names, approximate=True)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="FP8 and NVFP4, not the integers that were measured"):
        modelopt(preset("KV8"))
    with pytest.raises(BackendError, match="Layer 1 has the pair K4V8; ModelOpt has only KV8, KV4, K8V4 and KV16"):
        modelopt(preset("KV8 K4V8"), approximate=True)


def test_vllm_has_one_format_and_layers_without() -> None:
    found = vllm(preset("KV4 KV16 KV4 KV16", PER_TOKEN), approximate=True)
    assert found == ["--kv-cache-dtype", "int4_per_token_head", "--kv-cache-dtype-skip-layers", "1", "3"]
    assert vllm(preset("KV8 KV8", PER_TOKEN), approximate=True) == ["--kv-cache-dtype", "int8_per_token_head"]
    assert vllm(preset("KV16 KV16")) == []
    for pairs, scheme, approximate, message in (
        ("KV8 KV4", PER_TOKEN, True, "needs int4_per_token_head and int8_per_token_head; vLLM has one format"),
        ("KV8 KV8", KIVI, True, "no residual window. Search with scheme='per-token'"),
        ("KV8 KV8", PER_TOKEN, False, "vLLM rounds in its own way"),
        ("K8V4", PER_TOKEN, True, "vLLM has only KV8, KV4 and KV16"),
    ):
        with pytest.raises(BackendError, match=message):
            vllm(preset(pairs, scheme), approximate)
