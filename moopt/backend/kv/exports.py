"""Presets as other programs read them. What one cannot say is refused: nothing is exported that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moopt.backend.kv.pairs import KV16, PER_TOKEN, Pair
from moopt.backend.kv.presets import Preset
from moopt.errors import BackendError

MODELOPT = {Pair(8, 8): "FP8", Pair(4, 4): "NVFP4", Pair(8, 4): "FP8_K_NVFP4_V"}
"""What ModelOpt calls its formats of keys and values."""
VLLM = {Pair(8, 8): "int8_per_token_head", Pair(4, 4): "int4_per_token_head"}
"""What vLLM calls its integers with a scale for each token and head."""


def kvtuner(preset: Preset) -> str:
    """KVTuner's preset, as YAML: {0: {nbits_key: 8, nbits_value: 4}, ...}; how they are packed is said in a comment.

    There, groups of values are of so many channels, too; here a token's values have one scale a head.

    Raises:
        BackendError: a layer is not packed, KVTuner has 2, 4 and 8 bits; or the window is no whole number of groups.
    """
    scheme = preset.scheme
    if scheme.group_size is not None and scheme.residual_length % scheme.group_size:
        raise BackendError(
            f"The preset packs by {scheme}; KVTuner's residual_length is a multiple of its q_group_size."
        )
    for layer, pair in enumerate(preset.pairs):
        if 16 in (pair.k, pair.v):
            raise BackendError(
                f"Layer {layer} has the pair {pair}; KVTuner's presets know 2, 4 and 8 bits, and not 16."
            )
    if scheme.group_size is None:
        how = f"residual_length={scheme.residual_length} q_group_size=-1 axis_key=0 axis_value=0"
    else:
        how = f"residual_length={scheme.residual_length} q_group_size={scheme.group_size} axis_key=1 axis_value=0"
    lines = [f"{n}: {{nbits_key: {p.k}, nbits_value: {p.v}}}" for n, p in enumerate(preset.pairs)]
    return "\n".join([f"# {how}", *lines]) + "\n"


def modelopt(
    preset: Preset, names: str = "model.layers.{}.self_attn", approximate: bool = False
) -> dict[str, Any]:  # fmt: skip
    """The part of `quantization` in ModelOpt's hf_quant_config.json that is about the cache, schema 1.

    Args:
        preset: What to export.
        names: What the model calls a layer's attention.
        approximate: Whether ModelOpt's FP8 and NVFP4 may stand for our integers of 8 and 4 bits. They are other
            numbers: losses have to be measured again there.

    Raises:
        BackendError: ModelOpt has nothing like a pair, `names` no place for a number, or `approximate` was not said.
    """
    if not isinstance(names, str) or names.count("{}") != 1:
        raise BackendError(
            f"Got names={names!r}; expected such as 'model.layers.{{}}.self_attn', {{}} a layer's number."
        )
    algorithms = _named(preset, MODELOPT, "ModelOpt")
    _other_numbers(algorithms, approximate, "ModelOpt's formats of keys and values are FP8 and NVFP4")
    kinds = set(algorithms.values())
    return {
        "kv_cache_quant_algo": None if not kinds else kinds.pop() if len(kinds) == 1 else "MIXED_PRECISION",
        "kv_cache_quantized_layers": {names.format(n): {"quant_algo": algo} for n, algo in algorithms.items()},
        "kv_cache_schema_version": 1,
    }


def vllm(preset: Preset, approximate: bool = False) -> list[str]:
    """Arguments of `vllm serve`: one format for all layers but those that stay as they are.

    Args:
        preset: What to export; its packed layers have one pair, and a scale for each token.
        approximate: Whether vLLM's own ways to round may stand for ours. At 4 bits it rotates first: losses have to be
            measured again there.

    Raises:
        BackendError: vLLM cannot say it, or `approximate` was not said.
    """
    formats = _named(preset, VLLM, "vLLM")
    if len(kinds := sorted(set(formats.values()))) > 1:
        raise BackendError(
            f"The preset needs {' and '.join(kinds)}; vLLM has one format for all layers that are packed."
        )
    if not formats:
        return []
    if preset.scheme != PER_TOKEN:
        raise BackendError(
            f"The preset packs by {preset.scheme}; vLLM's integers have a scale for each token and no residual window. "
            "Search with scheme='per-token'."
        )
    _other_numbers(formats, approximate, "vLLM rounds in its own way")
    kept = [str(layer) for layer, pair in enumerate(preset.pairs) if pair == KV16]
    return ["--kv-cache-dtype", kinds[0], *(["--kv-cache-dtype-skip-layers", *kept] if kept else [])]


def _named(preset: Preset, names: Mapping[Pair, str], program: str) -> dict[int, str]:
    """What a program calls the format of each packed layer."""
    packed = {layer: pair for layer, pair in enumerate(preset.pairs) if pair != KV16}
    for layer, pair in packed.items():
        if pair not in names:
            raise BackendError(
                f"Layer {layer} has the pair {pair}; {program} has only {', '.join(map(str, names))} and KV16. Search "
                "with groups of those pairs, such as groups={'0-29': ['KV8', 'KV4']}."
            )
    return {layer: names[pair] for layer, pair in packed.items()}


def _other_numbers(formats: Mapping[int, str], approximate: bool, why: str) -> None:
    if formats and not approximate:
        raise BackendError(
            f"{why}, not the integers that were measured, so its losses will be others. Say approximate=True if you "
            "will measure them there."
        )
