"""What a model's layers cache, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from moopt.errors import BackendError


@dataclass(frozen=True)
class Shape:
    """The caches of a model.

    Attributes:
        heads: Heads of keys.
        size: Numbers of a head.
        windows: For each layer how many of the newest tokens it keeps; None: all, and these can be packed.
    """

    heads: int
    size: int
    windows: tuple[int | None, ...]

    @property
    def packable(self) -> tuple[int, ...]:
        """The numbers of the layers whose cache can be packed."""
        return tuple(layer for layer, window in enumerate(self.windows) if window is None)

    def window_bytes(self, tokens: int, batch: int = 1, itemsize: int = 2) -> int:
        """What the other layers cache after so many tokens."""
        kept = sum(min(tokens, window - 1) for window in self.windows if window is not None)
        return 2 * kept * self.heads * self.size * batch * itemsize


def shape_of(config: Any) -> Shape:
    """The shape of a model's caches.

    Raises:
        BackendError: a layer caches something else than keys and values, or layers have heads of several sizes.
    """
    own = config.get_text_config()
    try:
        heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
        size = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    except RuntimeError as error:  # what transformers says of numbers that are a layer's own
        raise BackendError("The model's layers have heads of several sizes; expected the same for all.") from error
    windows: list[int | None] = []
    for number, layer in enumerate(DynamicCache(config=config).layers):
        if type(layer) is DynamicLayer:
            windows.append(None)
        elif type(layer) is DynamicSlidingWindowLayer:
            windows.append(int(layer.sliding_window))
        else:
            raise BackendError(
                f"Layer {number} caches as a {type(layer).__name__}; expected keys and values of tokens."
            )
    return Shape(int(heads), int(size), tuple(windows))
