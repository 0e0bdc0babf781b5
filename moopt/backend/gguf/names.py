"""What GGUF calls the parts of a model, and in which order it has their rows.

llama.cpp keeps the queries and keys of Llama in another order than transformers: of each head the rows of the two
halves of the rotary embedding alternate.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moopt.backend.gguf import package

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""What GGUF calls the families of transformers."""


class Names:
    """The names of a model's parameters.

    Args:
        config: Of the model, whose family is one of `ARCHITECTURES`.

    Attributes:
        architecture: What GGUF calls the family.
    """

    def __init__(self, config: Any) -> None:
        gguf = package()
        self.architecture = ARCHITECTURES[config.model_type]
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        mapping = gguf.get_tensor_name_map(kind, int(config.num_hidden_layers)).mapping
        self._stems = {theirs: name for theirs, (_, name) in mapping.items()}
        self._heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def of(self, parameter: str) -> str | None:
        """The name of a parameter, such as blk.0.attn_q.weight; None if GGUF has none for it."""
        stem, _, last = parameter.rpartition(".")
        return f"{self._stems[stem]}.{last}" if stem in self._stems else None

    def ordered(self, name: str, rows: Tensor) -> Tensor:
        """Rows [n] or [n, k] of a parameter, by GGUF's name, in llama.cpp's order."""
        heads = self._alternating(name)
        return rows if heads is None else rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    def restored(self, name: str, rows: Tensor) -> Tensor:
        """The same in the order of transformers."""
        heads = self._alternating(name)
        return rows if heads is None else rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    def _alternating(self, name: str) -> int | None:
        """The number of heads whose rows alternate; None if they do not."""
        return self._heads.get(name.split(".")[-2]) if self.architecture == "llama" else None
