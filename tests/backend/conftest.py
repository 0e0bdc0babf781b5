"""Tiny random models with a byte tokenizer, saved like any other model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moopt.backend import quantizers, weights
from moopt.backend.candidate import Candidate

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral": ("MistralConfig", {}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "phi": ("PhiConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0}),
}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
    ),
}


def make_model(family: str) -> Any:
    """A random model of a family, two layers."""
    kind, extra = (FAMILIES | MIXTURES)[family]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SMALL, **extra})
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # fresh models predict almost uniformly: make them opinionated
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return model


def with_merges(folder: Path, copy: Path) -> Path:
    """A copy of a model whose tokenizer has a merge, without which llama.cpp loads no vocabulary."""
    shutil.copytree(folder, copy)
    found = json.loads((copy / "tokenizer.json").read_text())
    found["model"]["vocab"]["th"] = len(found["model"]["vocab"])
    found["model"]["merges"] = [["t", "h"]]
    (copy / "tokenizer.json").write_text(json.dumps(found))
    return copy


@pytest.fixture(scope="session")
def merging(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that has a merge."""
    return with_merges(tiny, tmp_path_factory.mktemp("models") / "merging")


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def save(byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a tiny model of a family, once; gives its folder."""
    saved: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in saved:
            saved[family] = tmp_path_factory.mktemp(family)
            make_model(family).save_pretrained(saved[family])
            byte_tokenizer.save_pretrained(saved[family])
        return saved[family]

    return make


@pytest.fixture(scope="session")
def tiny(save: Callable[[str], Path]) -> Path:
    """A tiny Llama with tied embeddings."""
    return save("llama-tied")


def candidate_of(model: Any, group_size: int = 32) -> Candidate:
    """The model as a candidate in float32, so that oracles in float64 agree closely."""
    matrices = weights.inventory(model).weights
    return Candidate(model, matrices, quantizers.RTN(), group_size, torch.device("cpu"), torch.float32)
