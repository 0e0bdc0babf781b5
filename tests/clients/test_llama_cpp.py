"""GGUF exports, loaded and run by llama.cpp itself: `make test-clients`."""

from __future__ import annotations

import gc
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, pre_tokenizers

import moopt
from moopt.backend import models
from moopt.backend.gguf import vocabulary
from moopt.backend.gguf.running import Running
from moopt.errors import BackendError
from moopt.problem import Fidelity
from moopt_problems import BitAllocation

pytestmark = pytest.mark.filterwarnings("default")  # of what the packages import
pytest.importorskip("xllamacpp", reason="llama.cpp is not installed; run make test-clients")

SMALL: dict[str, Any] = {
    "text": textwrap.__file__, "tokens": 128, "context": 64, "held_out": 0, "validation": 0, "sensitivities": None,
}  # fmt: skip
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
KINDS = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "wide heads": ("llama", {"head_dim": 128}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 64}),
}
TEXT = "Hello 2024 wörld,\n\n  it's 3.14 and 12345!!\t\tDON'T we'LL  日本語\r\n 🚀 <|im_start|> a/b\n/c   end  "


def saved(folder: Path, family: str, **settings: Any) -> str:
    """A model of two blocks with random weights and the real model's tokenizer."""
    tokenizer = models.load_tokenizer("smollm2-135m")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**SHAPE, "vocab_size": len(tokenizer), **settings})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # biases and norms that do something
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        elif "_proj" in name:
            parameter.data *= 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def exported(problem: BitAllocation, config: dict[str, Any], place: Path) -> Path:
    study = moopt.Study("export", problem, "random")
    study.run(trials=1)
    trial = study.history.trials[0]
    trial.config = config
    found = study.export(trial.number, "gguf", place)
    file = found.path / "model.gguf"
    assert file.stat().st_size == found.manifest["size"]
    return file


def wanted(problem: BitAllocation, config: dict[str, Any], ids: Sequence[int]) -> torch.Tensor:
    """The logits of what was searched, in float32."""
    shipment = problem.shipment(config)
    model = models.load_model(problem.model).float()
    found = model.load_state_dict({f"{name}.weight": shipment.values(name) for name in shipment.widths}, strict=False)
    assert not found.unexpected_keys
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits


def mixed(problem: BitAllocation) -> dict[str, Any]:
    """Every option somewhere."""
    return {n: d.options[place % len(d.options)] for place, (n, d) in enumerate(problem.decided.items())}


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_gives_the_searched_logits(kind: str, tmp_path: Path) -> None:
    family, settings = KINDS[kind]
    problem = BitAllocation(saved(tmp_path / "model", family, **settings), target="llama.cpp", tie="linear", **SMALL)
    config, ids = mixed(problem), range(100, 200)
    file = exported(problem, config, tmp_path / "out")
    assert file.stat().st_size == problem.bytes(config)
    with Running(file, 128, 2) as running:
        found = torch.tensor(running.logits(ids))
    ours = wanted(problem, config, ids)
    assert (found - ours).std() < 0.05 * ours.std()
    if "rope_parameters" in settings:  # is more than what llama.cpp's own rounding makes of it
        place = Path(saved(tmp_path / "plain", family))
        plain = wanted(BitAllocation(str(place), target="llama.cpp", tie="linear", **SMALL), config, ids)
        assert (plain - ours)[-1].std() > 4 * (found - ours)[-1].std()


@pytest.mark.parametrize("quantizer", ["rtn-symmetric", "rtn"])
def test_our_own_codes_are_those_of_gguf(quantizer: str, tmp_path: Path) -> None:
    place = saved(tmp_path / "model", "llama", tie_word_embeddings=True)
    problem = BitAllocation(place, bits=(4, 5, 8), group_size=64, quantizer=quantizer, tie="linear", **SMALL)
    config, ids = mixed(problem), range(100, 200)
    with Running(exported(problem, config, tmp_path / "out"), 128, 2) as running:
        found = torch.tensor(running.logits(ids))
    ours = wanted(problem, config, ids)
    assert (found - ours).std() < 0.05 * ours.std()


@pytest.mark.parametrize("split", vocabulary.SPLITS, ids=lambda split: vocabulary.SPLITS[split])
def test_text_is_split_as_by_the_models_own_tokenizer(split: tuple[str, ...], tmp_path: Path) -> None:
    place = Path(saved(tmp_path / "model", "llama", tie_word_embeddings=True))
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    steps = {"ByteLevel": pre_tokenizers.ByteLevel(False), "Digits": pre_tokenizers.Digits(True)}
    if split[0] in steps:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([steps[name] for name in split])
    else:
        plain = pre_tokenizers.ByteLevel(False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split[0]), "isolated"), plain])
    tokenizer.save(str(place / "tokenizer.json"))
    problem = BitAllocation(str(place), target="llama.cpp", bits=("q8_0",), **SMALL)
    with Running(exported(problem, problem.baselines()["uniform-q8_0"], tmp_path / "out")) as running:
        assert running.tokens(TEXT) == models.load_tokenizer(str(place))(TEXT)["input_ids"]


def test_the_real_model_keeps_its_promises(tmp_path: Path) -> None:
    """KL within 5% or .003 nats, the promised size, the same greedy text."""
    problem = BitAllocation(
        "smollm2-135m", target="llama.cpp", bits=("q4_0", "q5_0", "q5_1", "q8_0"), tie="block",
        tokens=1024, context=512, held_out=0, validation=0, sensitivities=None,
    )  # fmt: skip
    config = mixed(problem)
    file = exported(problem, config, tmp_path / "out")
    assert file.stat().st_size == problem.bytes(config)
    promised = problem.evaluate(config, Fidelity(1024, "held-out")).values["kl"]
    text = problem._ready.evaluator.ids(Fidelity(1024, "held-out"))
    original = models.load_model("smollm2-135m")
    with Running(file, 512, 2) as running:
        total = 0.0
        for ids in text:
            with torch.inference_mode():
                p = original(ids[None]).logits[0].float().log_softmax(-1)
            q = torch.tensor(running.logits(ids.tolist())).log_softmax(-1)
            total += float((p.exp() * (p - q)).sum(-1).mean()) / len(text)
        assert abs(total - promised) <= max(0.05 * promised, 0.003), (total, promised)
        ours = models.load_model("smollm2-135m")
        shipment = problem.shipment(config)
        ours.load_state_dict({f"{name}.weight": shipment.values(name) for name in shipment.widths}, strict=False)
        prompt = models.load_tokenizer("smollm2-135m")("The capital of France is")["input_ids"]
        theirs, own = list(prompt), list(prompt)
        for _ in range(16):
            theirs.append(int(np.argmax(running.logits(theirs)[-1])))
            with torch.inference_mode():
                own.append(int(ours(torch.tensor([own])).logits[0, -1].argmax()))
        assert theirs == own


def test_what_is_no_gguf_file_is_refused_with_what_llama_cpp_says(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_text(json.dumps("no"))
    with pytest.raises(BackendError, match=r"llama\.cpp cannot load .*no\.gguf.*magic"):
        Running(tmp_path / "no.gguf")


def test_two_models_can_be_run_and_closed_in_any_order(tmp_path: Path) -> None:
    place = saved(tmp_path / "model", "llama", tie_word_embeddings=True)
    problem = BitAllocation(place, target="llama.cpp", bits=("q8_0",), **SMALL)
    file = exported(problem, problem.baselines()["uniform-q8_0"], tmp_path / "out")
    first, second = Running(file, 64, 1), Running(file, 64, 1)
    second.close()
    del second
    gc.collect()
    assert first.logits([1, 2, 3]).shape == (3, 49152)
    first.close()
