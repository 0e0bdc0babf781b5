"""A packed cache for a transformers model: what goes in as `past_key_values`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from moopt.backend.kv import attention
from moopt.backend.kv.layer import PackedLayer
from moopt.backend.kv.pairs import KV16, Pair, Scheme, scheme_of
from moopt.backend.kv.presets import Preset
from moopt.errors import BackendError


class PackedCache(Cache):
    """Keys and values of all layers, packed as they come."""

    @property
    def nbytes(self) -> int:
        """What it takes in memory: codes, scales, the newest tokens as they came, and room that is not used yet."""
        return sum(_bytes(layer) for layer in self.layers)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The widths of each layer."""
        return tuple(layer.pair if isinstance(layer, PackedLayer) else KV16 for layer in self.layers)


def packed_cache(
    model: Any, pairs: Any, scheme: str | Scheme = "kivi", room: int = 0, fused: bool | Literal["auto"] = "auto",
    offload: bool = False,
) -> PackedCache:  # fmt: skip
    """An empty cache for one call of `model(...)` or `model.generate(...)`, and for those that go on from it.

    Args:
        model: A transformers model. With a fused cache its attention is set to one that reads packed keys and values;
            over other caches that is PyTorch's own.
        pairs: The widths of each layer, such as ["K8V4", (4, 2), 4]; or one for all; or a preset, with its scheme.
        scheme: "kivi", "per-token", or how else they are packed.
        room: Tokens to have room for from the beginning; more may come.
        fused: Whether attention reads the packed codes; "auto": where the model's attention can be replaced by
            PyTorch's own, so not where it has a softcap or sinks. Else it gets them dequantized: the same values, and
            more memory while it runs.
        offload: Whether layers are on the CPU while they are not needed; the model is on a GPU.

    Raises:
        BackendError: there is not a pair for each layer, a layer's attention is none that looks at all tokens, or what
            else is asked for cannot be had of this model.
        QuantizationError: a width or a scheme that there is none of.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise BackendError(f"{type(model).__name__} has an encoder; a packed cache is for decoders alone.")
    if fused not in (True, False, "auto"):
        raise BackendError(f"Got fused={fused!r}; expected True, False or 'auto'.")
    if type(room) is not int or room < 0:
        raise BackendError(f"Got room={room!r}; expected a whole number of tokens from 0.")
    if offload and model.device.type != "cuda":
        raise BackendError(f"Got offload=True for a model on {model.device}; only what is on a GPU can be offloaded.")
    layers = DynamicCache(config=model.config).layers
    if not layers:
        raise BackendError(f"{type(model).__name__} says of no layers what they cache; a packed cache needs that.")
    if isinstance(pairs, Preset):
        pairs, scheme = pairs.pairs, pairs.scheme
    widths = _of_layers(pairs, len(layers))
    how = scheme_of(scheme)
    replaceable = attention.replaceable(model)
    if fused is True and not replaceable:
        raise BackendError(
            f"{type(model).__name__} does not let its attention be replaced by PyTorch's own; say fused=False."
        )
    fuses = replaceable if fused == "auto" else bool(fused)
    found: list[Any] = []
    for number, (layer, pair) in enumerate(zip(layers, widths, strict=True)):
        if type(layer) is DynamicLayer:
            found.append(PackedLayer(pair, how, room, fuses))
        elif pair == KV16:
            found.append(layer)
        else:
            raise BackendError(
                f"Layer {number} caches as a {type(layer).__name__}, which cannot be packed; give it the pair 'KV16'."
            )
    if fuses:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    return PackedCache(layers=found, offloading=offload)


def _of_layers(pairs: Any, layers: int) -> list[Pair]:
    """A pair for each layer."""
    if isinstance(pairs, Sequence) and not isinstance(pairs, str) and not _is_one(pairs):
        if len(pairs) != layers:
            raise BackendError(f"Got {len(pairs)} pairs; the model has {layers} layers that cache.")
        return [Pair.of(each) for each in pairs]
    return [Pair.of(pairs)] * layers


def _is_one(pairs: Sequence[Any]) -> bool:
    """Whether that is a pair by itself: (8, 4). Of a model with two layers it would be two pairs, [8, 4]."""
    return isinstance(pairs, tuple) and len(pairs) == 2 and all(type(each) is int for each in pairs)


def _bytes(layer: Any) -> int:
    if isinstance(layer, PackedLayer):
        return layer.nbytes
    return sum(_tensor_bytes(each) for name, each in vars(layer).items() if not name.startswith("_"))


def _tensor_bytes(found: Any) -> int:
    """The bytes of a tensor, or of those in a list or a dictionary; other things have none."""
    if isinstance(found, (list, tuple, dict)):
        return sum(map(_tensor_bytes, found.values() if isinstance(found, dict) else found))
    return found.nbytes if isinstance(found, Tensor) else 0
