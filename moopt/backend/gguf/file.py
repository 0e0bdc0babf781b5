"""A whole GGUF file of a language model: what it says, its bytes before it is written, and its tensors one by one."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moopt.backend import models
from moopt.backend.gguf import package, vocabulary
from moopt.backend.gguf.names import ARCHITECTURES, Names
from moopt.backend.gguf.types import GGUFType, aligned
from moopt.backend.weights import Inventory
from moopt.errors import QuantizationError

ROPE_FACTORS = "rope_freqs.weight"
"""What the frequencies of the rotary embedding are divided by, as Llama 3.1 has them."""
ROPES = ("default", "linear", "llama3")


class Part(NamedTuple):
    """A tensor of the file.

    Attributes:
        name: GGUF's.
        kind: Its type, as the package `gguf` calls it.
        shape: n, or n x k.
        bytes: Without what fills up to the next tensor.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: int


class GGUFFile:
    """How a model is stored as GGUF: vectors in float32, matrices in types or in bfloat16.

    Args:
        model: An embedded name, a folder or a Hugging Face id.
        config: Its configuration.
        inventory: Its matrices and the rest.

    Raises:
        QuantizationError: llama.cpp has no such model, as far as is known here.
    """

    def __init__(self, model: str, config: Any, inventory: Inventory) -> None:
        if config.model_type not in ARCHITECTURES:
            raise QuantizationError(
                f"{model} is a {config.model_type}; GGUF files are written of {', '.join(ARCHITECTURES)}. Export "
                "'checkpoint', and take llama.cpp's own converter."
            )
        self._rope = dict(config.rope_parameters)
        if self._rope["rope_type"] not in ROPES:
            raise QuantizationError(
                f"{model} has a rotary embedding of the kind {self._rope['rope_type']!r}; GGUF files are written of "
                f"{', '.join(ROPES)}. Export 'checkpoint', and take llama.cpp's own converter."
            )
        biased = [name for name in inventory.rest if name.endswith(".bias")]
        if config.hidden_act != "silu" or (biased and config.model_type not in ("llama", "qwen2")):
            odd = f"the activation {config.hidden_act!r}" if config.hidden_act != "silu" else f"the bias {biased[0]}"
            raise QuantizationError(f"{model} has {odd}, which llama.cpp's {ARCHITECTURES[config.model_type]} has not.")
        self._model, self._config, self._inventory = model, config, inventory
        self._head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self._names = Names(config)

    @property
    def _context(self) -> int:
        """The tokens up to which llama.cpp runs it as it is: it has no sliding window for these families."""
        config = self._config
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return int(min(config.max_position_embeddings, window or config.max_position_embeddings))

    def fixed_bytes(self, types: Mapping[str, GGUFType]) -> int:
        """What the file takes without its quantized matrices: the same whatever their types.

        Args:
            types: Those of the quantized matrices, by name.
        """
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "header.gguf"
            self._begun(path, types).close()
            header = aligned(path.stat().st_size)
        return header + sum(aligned(part.bytes) for name, part in self._parts(types).items() if name not in types)

    def write(
        self, path: Path, types: Mapping[str, GGUFType], encoded: Callable[[str], npt.NDArray[np.uint8]],
        parameters: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        """Write the file.

        Args:
            path: The file.
            types: Those of the quantized matrices, by name.
            encoded: Gives the bytes of one of them, n x bytes of a row.
            parameters: All others by name.
        """
        writer = self._begun(path, types)
        try:
            for name, part in self._parts(types).items():
                if name in types:
                    rows = torch.from_numpy(encoded(name))
                elif name == ROPE_FACTORS:
                    rows = self._factors()
                else:
                    rows = parameters[name].data.float().cpu()
                    rows = rows if part.kind == "F32" else rows.bfloat16().view(torch.uint8)
                writer.write_tensor_data(self._names.ordered(part.name, rows).contiguous().numpy())
        finally:
            writer.close()

    def _parts(self, types: Mapping[str, GGUFType]) -> dict[str, Part]:
        """The tensors by our name, in the order of the file."""
        shapes: dict[str, tuple[int, ...]] = {f"{w.name}.weight": w.shape for w in self._inventory.weights}
        found = {}
        for parameter, shape in (shapes | self._inventory.rest).items():
            name = self._names.of(parameter)
            if name is None:
                raise QuantizationError(f"GGUF has no name for {parameter} of {self._model}.")
            matrix = parameter.removesuffix(".weight")
            if matrix in types:
                kind = types[matrix]
                found[matrix] = Part(name, kind.name.upper(), shape, shape[0] * kind.row_bytes(shape[1]))
            else:
                single = len(shape) == 1
                found[parameter] = Part(
                    name, "F32" if single else "BF16", shape, math.prod(shape) * (4 if single else 2)
                )
        if self._rope["rope_type"] == "llama3":
            factors = self._factors()
            found[ROPE_FACTORS] = Part(ROPE_FACTORS, "F32", tuple(factors.shape), factors.nbytes)
        return found

    def _begun(self, path: Path, types: Mapping[str, GGUFType]) -> Any:
        """The package's writer of a file that has all but the tensors' values."""
        gguf = package()
        writer = gguf.GGUFWriter(path, self._names.architecture)
        self._describe(writer, types)
        vocabulary.add(writer, self._model, int(self._config.vocab_size))
        for part in self._parts(types).values():
            kind = gguf.GGMLQuantizationType[part.kind]
            writer.add_tensor_info(part.name, part.shape, np.dtype(np.float32), part.bytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        return writer

    def _describe(self, writer: Any, types: Mapping[str, GGUFType]) -> None:
        """Say what the model is."""
        gguf, config = package(), self._config
        most = Counter(kind.name.upper() for kind in types.values()).most_common(1)[0][0] if types else "BF16"
        kinds = (kind for name, kind in gguf.LlamaFileType.__members__.items() if name.startswith(f"MOSTLY_{most}"))
        writer.add_type("model")
        writer.add_name(models.hub_name(self._model) or Path(self._model).name)
        if licence := models.licence(self._model):
            writer.add_license(licence)
        writer.add_file_type(int(next(kinds)))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(self._context)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(self._head)
        writer.add_value_length(self._head)
        writer.add_vocab_size(config.vocab_size)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(self._head)
        writer.add_rope_freq_base(self._rope["rope_theta"])
        if self._rope["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(self._rope["factor"])

    def _factors(self) -> Tensor:
        """What Llama 3.1 divides the frequencies by, float32."""
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self._config, torch.device("cpu"))
        plain = self._rope["rope_theta"] ** -(torch.arange(0, self._head, 2).float() / self._head)
        factors: Tensor = plain / scaled.float()
        return factors
