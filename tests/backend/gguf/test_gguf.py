"""GGUF's types and files, by the package `gguf`: what is written is read back, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

import moopt
from moopt.backend import quantizers
from moopt.backend.gguf import codes, llama_cpp, types
from moopt.backend.gguf.types import GGUFType
from moopt.backend.quantizers import RTN, EoRA
from moopt.backend.weights import Weight
from moopt.errors import ExportError, ProblemError, QuantizationError
from moopt_problems import BitAllocation
from tests.backend.conftest import with_merges

SMALL: dict[str, Any] = {
    "text": "prose", "tokens": 128, "context": 64, "held_out": 0, "validation": 0, "sensitivities": None,
}  # fmt: skip
PLAIN = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


@pytest.fixture
def matrix() -> torch.Tensor:
    return 0.02 * torch.randn(24, 512, generator=torch.Generator().manual_seed(0))


def exported(problem: BitAllocation, config: dict[str, Any], place: Path) -> Any:
    study = moopt.Study("export", problem, "random")
    study.run(trials=1)
    study.history.trials[0].config = config
    return study.export(0, "gguf", place)


@pytest.mark.parametrize("name", types.NAMES)
def test_a_type_takes_its_bytes_and_loses_less_the_more_it_takes(name: str, matrix: torch.Tensor) -> None:
    kind, weight = GGUFType(name), Weight("w", (24, 512))
    assert gguf.GGML_QUANT_SIZES[kind.kind] == types.BLOCKS[name][:2]
    rows = kind.encoded(matrix)
    assert rows.nbytes == 24 * kind.row_bytes(512) == kind.bytes(weight)
    lost = (kind.values(weight, matrix) - matrix).norm() / matrix.norm()
    assert 0.003 < lost < 1.6 * 2.0 ** -kind.bits(weight)


def test_of_equal_bytes_a_search_gets_what_loses_least() -> None:
    assert types.best([Weight("w", (8, 96))]) == ("iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0")
    wide = types.best([Weight("w", (8, 512))])
    assert wide == ("q2_k", "q3_k", "iq4_xs", "q4_k", "q4_1", "q5_k", "q5_1", "q6_k", "q8_0")
    assert types.best([Weight("w", (8, 512)), Weight("v", (8, 96))]) == types.best([Weight("v", (8, 96))])


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [("rtn-symmetric", 4), ("rtn-symmetric", 5), ("rtn-symmetric", 8), ("hqq", 4), ("rtn", 5)],
)
def test_own_codes_are_not_rounded_again(quantizer: str, bits: int, group_size: int, matrix: torch.Tensor) -> None:
    made = quantizers.named(quantizer).quantize(matrix, bits, group_size, None)
    kind = codes.kind(bits, made.zeros is None)
    assert kind is not None
    found, wanted = kind.decoded(codes.encoded("w", made)), made.dequantize()
    assert (found - wanted).abs().max() <= (0 if made.zeros is None else 2.0**-10) * wanted.abs().max()


def test_codes_that_gguf_has_not_are_refused_by_name(matrix: torch.Tensor) -> None:
    rtn = quantizers.named("rtn")
    with pytest.raises(QuantizationError, match="no type of codes as those of w: 3 bits, with zero points"):
        codes.encoded("w", rtn.quantize(matrix, 3, 32, None))
    with pytest.raises(QuantizationError, match="blocks have 32 inputs; the groups of w have 16"):
        codes.encoded("w", rtn.quantize(matrix, 4, 16, None))
    with pytest.raises(QuantizationError, match="scales of w are beyond float16"):
        codes.encoded("w", rtn.quantize(matrix * 1e9, 4, 32, None))


def test_a_file_has_the_promised_bytes_names_and_values(merging: Path, tmp_path: Path) -> None:
    problem = BitAllocation(
        str(merging), formats="gguf", bits=PLAIN, tie="linear", skip=["*.1.self_attn.o_proj"], **SMALL
    )
    config = {n: d.options[place % len(d.options)] for place, (n, d) in enumerate(problem.decided.items())}
    found = exported(problem, config, tmp_path / "out")
    file = found.path / "model.gguf"
    assert file.stat().st_size == problem.bytes(config) == found.manifest["size"]
    assert problem.known(config)["size_mb"] == problem.bytes(config) / 1e6
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 320
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["blk.1.attn_output.weight"].tensor_type.name == "BF16"
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    shipment = problem.shipment(config)
    down = tensors["blk.0.ffn_down.weight"]
    values = gguf.dequantize(down.data, down.tensor_type)
    np.testing.assert_array_equal(values, shipment.values("model.layers.0.mlp.down_proj").numpy())
    again = BitAllocation(str(merging), external={"theirs": str(file)}, group_size=32, **SMALL)  # rows of heads and all
    for name, how in again.external.items():
        for weight in again.inventory.linears():
            if how.has(weight):
                read = how.values(weight, shipment.original(weight.name))
                torch.testing.assert_close(read, shipment.values(weight.name), rtol=0, atol=0, msg=f"{name} {weight}")


@pytest.mark.parametrize("family", ["qwen2", "mistral", "llama"])
def test_transformers_reads_the_file(save: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    place = with_merges(save(family), tmp_path / "model")
    problem = BitAllocation(str(place), target="llama.cpp", bits=("q8_0",), head=("q8_0",), **SMALL)
    config = problem.baselines()["uniform-q8_0"]
    found = exported(problem, config, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(found.path, gguf_file="model.gguf", dtype=torch.float32)
    shipment = problem.shipment(config)
    for name in shipment.widths:
        torch.testing.assert_close(
            theirs.get_parameter(f"{name}.weight").data, shipment.values(name), rtol=0, atol=1e-6
        )


def test_searches_go_on_over_types(merging: Path) -> None:
    how = {**SMALL, "sensitivities": "fisher", "sensitivity_tokens": 512}
    problem = BitAllocation(str(merging), target="llama.cpp", bits=PLAIN, embedding=PLAIN, **how)
    study = moopt.Study("types", problem, "auto", seed=0).run(trials=20)
    front = study.front()
    assert {"uniform-q8_0"} <= {trial.label for trial in study.history.trials}
    assert len(front) > 2
    assert front["kl"].min() < 1e-3


def test_what_does_not_fit_is_refused(tiny: Path, save: Callable[[str], Path], tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"formats": "ggml"}, ProblemError, "Got formats='ggml'; expected moopt, gguf"),
        ({"formats": "moopt", "target": "llama.cpp"}, ProblemError, "expected gguf, which llama.cpp loads"),
        ({"formats": "gguf", "quantizer": "gptq"}, ProblemError, "leave it out"),
        ({"formats": "gguf", "bits": (4, "q8_0")}, QuantizationError, "expected q2_k, q3_k"),
        ({"formats": "gguf", "bits": ("q4_k",)}, QuantizationError, r"None of q4_k fits .*q_proj, which has 64 inputs"),
        (
            {"formats": "gguf", "embedding": "q6_k"},
            QuantizationError,
            r"q6_k does not fit the 64 inputs .*types that do",
        ),
        ({"formats": "gguf", "embedding": 8}, QuantizationError, r"Got embedding=\(8,\); expected 16 or q2_k"),
        ({"formats": "gguf", "objectives": ("kl", "decode_ms")}, ProblemError, "which no kernel runs"),
        ({"target": "ollama"}, ProblemError, "expected one of moopt, transformers, vllm, llama.cpp"),
        ({"target": "vllm", "bits": (3, 4)}, ProblemError, "vllm .* does not load bits of 3; expected 4, 8"),
        ({"target": "vllm", "tie": "linear"}, ProblemError, "tie='linear'; expected fused"),
        ({"target": "vllm", "embedding": 8}, ProblemError, "embedding or head of 8; expected 16"),
        ({"target": "transformers", "quantizer": "hqq"}, ProblemError, "'hqq', which has zero points"),
        ({"target": "vllm", "quantizer": "matgptq"}, ProblemError, "the codes of the quantizer 'matgptq'"),
        ({"target": "vllm", "group_size": 16}, ProblemError, "group_size=16; expected 32, 64, 128"),
        ({"target": "vllm", "skip": ["*.q_proj"]}, ProblemError, "runs .* as one layer; skip all of them, or none"),
        ({"target": ["vllm"]}, ProblemError, "expected one of moopt"),
    ]
    for arguments, kind, said in wrong:
        with pytest.raises(kind, match=said):
            BitAllocation(str(tiny), **{"group_size": 32, **SMALL, **arguments})
    with pytest.raises(QuantizationError, match=r"is a gemma; GGUF files are written of llama"):
        BitAllocation(str(save("gemma")), formats="gguf", **SMALL)
    plain = BitAllocation(str(tiny), group_size=32, **SMALL)
    with pytest.raises(ExportError, match=r"no type that is the same as these options: 2 \(.*target='llama.cpp'"):
        exported(plain, plain.baselines()["uniform-2"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_targets_say_what_nobody_said(tiny: Path) -> None:
    vllm = BitAllocation(str(tiny), target="vllm", group_size=32, **SMALL)
    assert vllm.decided["0.q_k_v"].options == (4, 8)
    assert not vllm.fixed  # the embedding is left alone
    other = BitAllocation(str(tiny), target="transformers", group_size=32, **SMALL)
    assert other.quantizer.symmetric
    assert other.decided["0.q_k_v"].options == (2, 3, 4, 5, 6, 8)
    assert BitAllocation(str(tiny), target="moopt", group_size=32, **SMALL).fixed == {"model.embed_tokens": 8}


def test_without_llama_cpp_its_types_are_refused(matrix: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "PACKAGES", {"nobody_has_this": ("*.so",)})
    llama_cpp.library.cache_clear()
    try:
        with pytest.raises(QuantizationError, match="pip install xllamacpp"):
            GGUFType("q6_k").encoded(matrix)
        assert GGUFType("q8_0").encoded(matrix).shape == (24, 16 * 34)
    finally:
        llama_cpp.library.cache_clear()


def test_unknown_tokenizers_are_refused(tiny: Path, tmp_path: Path) -> None:
    bare = BitAllocation(str(tiny), formats="gguf", bits=PLAIN, **SMALL)
    with pytest.raises(QuantizationError, match="has no merges"):
        bare.known(bare.baselines()["uniform-q8_0"])
    place = with_merges(tiny, tmp_path / "model")
    tokenizer = json.loads((place / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    problem = BitAllocation(str(place), formats="gguf", bits=PLAIN, **SMALL)
    with pytest.raises(QuantizationError, match=r"splits text in a way that is not known here: \('Whitespace',\)"):
        problem.known(problem.baselines()["uniform-q8_0"])


def changed(folder: Path, copy: Path, **settings: Any) -> str:
    """A copy of a model with another configuration."""
    place = with_merges(folder, copy)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | settings))
    return str(place)


def test_what_llama_cpp_would_run_otherwise_is_refused_or_said(
    tiny: Path, save: Callable[[str], Path], tmp_path: Path
) -> None:
    gelu = changed(tiny, tmp_path / "gelu", hidden_act="gelu")
    with pytest.raises(QuantizationError, match=r"has the activation 'gelu', which llama\.cpp's llama has not"):
        BitAllocation(gelu, formats="gguf", bits=PLAIN, **SMALL)
    window = changed(save("mistral"), tmp_path / "window", sliding_window=48)
    problem = BitAllocation(window, formats="gguf", bits=("q8_0",), **SMALL)
    found = exported(problem, problem.baselines()["uniform-q8_0"], tmp_path / "out")
    reader = gguf.GGUFReader(found.path / "model.gguf")
    assert reader.fields["llama.context_length"].contents() == 48
    assert reader.fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_targets_hold_what_their_files_hold(tiny: Path, merging: Path, tmp_path: Path) -> None:
    repaired = BitAllocation(str(tiny), target="moopt", quantizer=EoRA(RTN(), ranks=(0, 4)), group_size=32, **SMALL)
    assert "4+r4" in repaired.decided["0.q_k_v"].options
    problem = BitAllocation(str(merging), formats="gguf", bits=("q8_0",), **SMALL)
    file = exported(problem, problem.baselines()["uniform-q8_0"], tmp_path / "out").path / "model.gguf"
    mixed = BitAllocation(str(merging), formats="gguf", bits=("q8_0",), external={"theirs": str(file)}, **SMALL)
    assert mixed.known(mixed.baselines()["uniform-theirs"]) == mixed.known(mixed.baselines()["uniform-q8_0"])
    with pytest.raises(QuantizationError, match="Got the external option 'q4_0'"):
        BitAllocation(str(merging), external={"q4_0": str(file)}, group_size=32, **SMALL)


@pytest.mark.parametrize("quantizer", ["rtn", "rtn-symmetric"])
def test_sizes_for_vllm_are_those_of_its_file(tiny: Path, quantizer: str, tmp_path: Path) -> None:
    problem = BitAllocation(str(tiny), target="vllm", quantizer=quantizer, group_size=32, **SMALL)
    small, large = (problem.baselines()[name] for name in ("uniform-4", "uniform-8"))
    sizes = []
    for place, config in enumerate((small, large)):
        study = moopt.Study("export", problem, "random").run(trials=1)
        study.history.trials[0].config = config
        sizes.append(study.export(0, "compressed-tensors", tmp_path / str(place)).manifest["size"])
    assert sizes[1] - sizes[0] == problem.bytes(large) - problem.bytes(small)
