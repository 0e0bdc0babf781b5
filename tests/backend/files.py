"""Quantized models as other tools write them, packed here bit by bit, with the values that they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import save_file
from torch import Tensor

from moopt.backend import weights

GROUP = 32
Values = dict[str, Tensor]
"""What each matrix is after dequantization, by name."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gptq(model: Any, folder: Path, bits: int = 4, written: str | None = None, act_order: bool = False) -> Values:
    """A GPTQ folder; with act_order the inputs of a group are anywhere."""
    tensors, values = _rest(model), {}
    less = 0 if written == "gptq_v2" else 1
    for weight in weights.inventory(model).linears():
        matrix, k = model.get_submodule(weight.name).weight.data, weight.shape[1]
        order = torch.randperm(k, generator=torch.Generator().manual_seed(0)) if act_order else torch.arange(k)
        codes, scales, zeros = _codes(matrix[:, order], bits)
        values[weight.name] = _dequantized(codes, scales, zeros)[:, order.argsort()]
        parts = {
            "qweight": _packed(codes[:, order.argsort()].T, bits),
            "qzeros": _packed((zeros - less) % 2**bits, bits).T,
            "scales": scales.T,
            "g_idx": (torch.arange(k) // GROUP)[order.argsort()].int(),
        }
        tensors |= {f"{weight.name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    settings = {"bits": bits, "group_size": GROUP, "desc_act": act_order, "quant_method": "gptq"}
    _write(folder, tensors, settings | ({} if written is None else {"checkpoint_format": written}))
    return values


def autoround(model: Any, folder: Path, bits: int = 3, symmetric: bool = False, awq: bool = False) -> Values:
    """An AutoRound folder; where it is neither symmetric nor as AWQ, layer 0 has 8 bits, its keys in smaller groups."""
    tensors, values, own = _rest(model), {}, {}
    for weight in weights.inventory(model).linears():
        first = not symmetric and not awq and ".layers.0." in weight.name
        width, size = 8 if first else bits, GROUP // 2 if first and "k_proj" in weight.name else GROUP
        matrix = model.get_submodule(weight.name).weight.data
        codes, scales, zeros = _codes(matrix, width, size=size, symmetric=symmetric)
        values[weight.name] = _dequantized(codes, scales, zeros)
        parts = {
            "qweight": _packed(codes.T, width),
            "qzeros": _packed((zeros - int(symmetric)) % 2**width, width).T,
            "scales": scales.T,
        }
        if awq:
            parts |= {"qweight": _packed_awq(codes.T), "qzeros": _packed_awq(zeros.T)}
        tensors |= {f"{weight.name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        own |= {weight.name: {"bits": width, "group_size": size}} if first else {}
    settings = {"bits": bits, "group_size": GROUP, "sym": symmetric, "quant_method": "auto-round", "extra_config": own}
    packing = "auto_round:auto_gptq" if symmetric else "auto_round:auto_awq" if awq else "auto_round"
    _write(folder, tensors, settings | {"packing_format": packing})
    return values


def compressed(model: Any, folder: Path, bits: int = 4, zero_points: str = "none", act_order: bool = False) -> Values:
    """A compressed-tensors folder; zero points are none, packed in int32 or int8 as they are."""
    tensors, values, middle = _rest(model), {}, 2 ** (bits - 1)
    for weight in weights.inventory(model).linears():
        matrix, k = model.get_submodule(weight.name).weight.data, weight.shape[1]
        order = torch.randperm(k, generator=torch.Generator().manual_seed(0)) if act_order else torch.arange(k)
        codes, scales, zeros = _codes(matrix[:, order], bits, symmetric=zero_points == "none")
        values[weight.name] = _dequantized(codes, scales, zeros)[:, order.argsort()]
        parts = {
            "weight_packed": _packed(codes[:, order.argsort()].T, bits).T,
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if zero_points != "none":
            signed = (zeros - middle).to(torch.int8)
            parts["weight_zero_point"] = signed if zero_points == "int8" else _packed(zeros, bits)
        if act_order:
            parts["weight_g_idx"] = (torch.arange(k) // GROUP)[order.argsort()].int()
        tensors |= {f"{weight.name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    _write(folder, tensors, {"quant_method": "compressed-tensors", "format": "pack-quantized"})
    return values


def gguf_file(model: Any, path: Path, kind: str = "Q4_0", architecture: str = "llama") -> Values:
    """A GGUF file as llama.cpp converts a Llama: the embedding in Q8_0, queries and keys in its own order of rows."""
    writer, values = gguf.GGUFWriter(path, architecture), {}
    writer.add_block_count(model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        stem, array = name.removesuffix(".weight"), parameter.data.float().numpy()
        if array.ndim == 1:
            writer.add_tensor(f"{_named(stem)}.weight", array)
            continue
        chosen = GGMLQuantizationType["Q8_0" if "embed" in name else kind]
        values[stem] = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(array, chosen), chosen))
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
        if count := heads.get(stem.rpartition(".")[2]):
            array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(f"{_named(stem)}.weight", gguf.quants.quantize(array, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _named(stem: str) -> str:
    """GGUF's name of a module of Llama."""
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if stem in whole:
        return whole[stem]
    _, _, block, rest = stem.split(".", 3)
    return f"blk.{block}.{NAMES[rest]}"


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes [m, n] one behind the other along the first dimension, in int32 words [m * bits / 32, n]."""
    columns = []
    for column in codes.T.tolist():
        number = sum(code << (bits * place) for place, code in enumerate(column))
        words = number.to_bytes(-(-len(column) * bits // 32) * 4, "little")
        columns.append(np.frombuffer(words, dtype="<i4"))
    return torch.from_numpy(np.stack(columns, 1).copy())


def _codes(weight: Tensor, bits: int, symmetric: bool = False, size: int = GROUP) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [n, k] from 0, float16 scales and zero points [n, groups]; those of the first group are 0 or the top."""
    groups = weight.float().view(len(weight), -1, size)
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    if symmetric:
        high = groups.abs().amax(-1) * (1 + 1 / (2**bits - 1))
        low = -high
    scales = ((high - low) / (2**bits - 1)).half()
    zeros = (-low / scales.float()).round()
    if symmetric:
        zeros = torch.full_like(zeros, 2.0 ** (bits - 1))
    else:
        zeros[:3, 0] = 0
    codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 2**bits - 1)
    return codes.int().view(len(weight), -1), scales, zeros.int()


def _packed_awq(codes: Tensor) -> Tensor:
    """Codes of 4 bits [rows, n] in words [rows, n / 8], as AutoAWQ packs them."""
    words = torch.zeros(len(codes), codes.shape[1] // 8, dtype=torch.int64)
    for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= codes[:, output::8].long() << (4 * place)
    return words.to(torch.int32)


def _dequantized(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    size = codes.shape[1] // zeros.shape[1]
    zero, scale = (part.float().repeat_interleave(size, 1) for part in (zeros, scales))
    return (codes.float() - zero) * scale


def _rest(model: Any) -> dict[str, Tensor]:
    """What stays as it is."""
    linears = {f"{weight.name}.weight" for weight in weights.inventory(model).linears()}
    return {name: p.data.half() for name, p in model.named_parameters() if name not in linears}


def _write(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Two files, and the configuration beside them."""
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: tensors[name].clone() for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
