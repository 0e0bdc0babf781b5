"""A tokenizer as llama.cpp has it: byte-level BPE, whose way of splitting text it knows by name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from moopt.backend import models
from moopt.backend.gguf import package
from moopt.errors import QuantizationError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPLITS: dict[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",): "llama-bpe",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",): "qwen2",
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "tekken",
}
"""llama.cpp's names for how text is split before merges, by what `tokenizer.json` says."""


def add(writer: Any, model: str, size: int) -> None:
    """Add a model's tokenizer to a file.

    Args:
        writer: The package's writer.
        model: An embedded name, a folder or a Hugging Face id.
        size: How many rows the embedding has; rows without a token get an unused one.

    Raises:
        QuantizationError: llama.cpp has no such tokenizer, as far as is known here.
    """
    gguf = package()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = models.load_tokenizer(model)
        tokenizer.save_pretrained(folder)
        models.load_config(model).save_pretrained(folder)
        found = _read(folder, model)
        special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=size)
    around = tokenizer("")["input_ids"]  # else llama.cpp adds what it is used to
    special.add_special_token = {
        "bos": bool(around) and around[0] == tokenizer.bos_token_id,
        "eos": bool(around) and around[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id,
    }
    tokens = {number: (f"[PAD{number}]", gguf.TokenType.UNUSED) for number in range(size)}
    tokens |= {number: (text, gguf.TokenType.NORMAL) for text, number in found["model"]["vocab"].items()}
    for each in found["added_tokens"]:
        kind = gguf.TokenType.CONTROL if each["special"] else gguf.TokenType.USER_DEFINED
        tokens[each["id"]] = (each["content"], kind)
    if len(tokens) > size:
        raise QuantizationError(
            f"The tokenizer of {model} has {len(tokens)} tokens and its embedding {size} rows; expected no more tokens "
            "than rows."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(found, model))
    writer.add_token_list([tokens[number][0] for number in range(size)])
    writer.add_token_types([tokens[number][1] for number in range(size)])
    special.add_to_gguf(writer, quiet=True)


def _read(folder: Path, model: str) -> dict[str, Any]:
    """What `tokenizer.json` says, of a tokenizer of the kind that is known here."""
    file = folder / "tokenizer.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    kind = found.get("model", {})
    if kind.get("type") != "BPE" or kind.get("byte_fallback"):
        raise QuantizationError(
            f"The tokenizer of {model} is not byte-level BPE, as those of SmolLM, Llama 3, Qwen and Mistral NeMo are: "
            "it cannot be written to a GGUF file here. Export 'checkpoint', and take llama.cpp's own converter."
        )
    if not kind.get("merges"):
        raise QuantizationError(f"The tokenizer of {model} has no merges, without which llama.cpp loads no vocabulary.")
    return found


def _split(found: dict[str, Any], model: str) -> str:
    """llama.cpp's name for how a tokenizer splits text."""
    before = found.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    told = tuple(
        step.get("pattern", {}).get("Regex", "") if step.get("type") == "Split" else str(step.get("type"))
        for step in steps
        if not (step.get("type") == "ByteLevel" and not step.get("use_regex", True))
    )
    if told not in SPLITS or any(step.get("add_prefix_space") for step in steps):
        raise QuantizationError(
            f"The tokenizer of {model} splits text in a way that is not known here: {told}. Export 'checkpoint', and "
            "take llama.cpp's own converter."
        )
    return SPLITS[told]
