"""Exports in compressed-tensors, loaded by transformers with that package: `make test-clients`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import moopt
from moopt_problems import BitAllocation

pytestmark = pytest.mark.filterwarnings("default")  # of what the packages import
pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed; run make test-clients")

WIDTHS = (2, 3, 4, 5, 6, 8)
SMALL: dict[str, Any] = {
    "text": textwrap.__file__, "tokens": 128, "context": 64, "held_out": 0, "validation": 0, "sensitivities": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two blocks with the real model's tokenizer."""
    from moopt.backend import models

    place = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = models.load_tokenizer("smollm2-135m")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def exported(problem: BitAllocation, config: dict[str, Any], place: Path) -> tuple[Path, Path]:
    """The candidate as compressed-tensors and as moopt's own file."""
    study = moopt.Study("export", problem, "random")
    study.run(trials=1)
    trial = study.history.trials[0]
    trial.config = config
    ours = study.export(trial.number, "moopt", place / "ours").path / "model.safetensors"
    return study.export(trial.number, "compressed-tensors", place / "theirs").path, ours


def apart(theirs: Path, ours: Path) -> float:
    """How far the logits of both are apart at most."""
    ids = torch.arange(1, 49)[None]
    with torch.inference_mode():
        found, wanted = (m(input_ids=ids).logits for m in (loaded(theirs), moopt.load(ours, dtype=torch.float32)))
    assert wanted.std() > 0.05
    return float((found - wanted).abs().max())


def mixed(problem: BitAllocation) -> dict[str, Any]:
    """Every width somewhere."""
    return {name: WIDTHS[place % len(WIDTHS)] for place, name in enumerate(problem.space.names)}


@pytest.mark.parametrize("group_size", [32, 64])
def test_every_width_gives_the_searched_logits(tiny: Path, tmp_path: Path, group_size: int) -> None:
    problem = BitAllocation(str(tiny), bits=WIDTHS, group_size=group_size, quantizer="rtn-symmetric", **SMALL)
    assert apart(*exported(problem, mixed(problem), tmp_path)) < 1e-2


@pytest.mark.parametrize("quantizer", ["rtn", "hqq"])
def test_zero_points_are_what_the_package_unpacks(tiny: Path, tmp_path: Path, quantizer: str) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    problem = BitAllocation(str(tiny), bits=WIDTHS, group_size=32, quantizer=quantizer, **SMALL)
    theirs, _ = exported(problem, config := mixed(problem), tmp_path)
    tensors, found = load_file(theirs / "model.safetensors"), problem.shipment(config)
    groups = json.loads((theirs / "config.json").read_text())["quantization_config"]["config_groups"]
    assert len(groups) == len(WIDTHS)
    for group in groups.values():
        scheme = QuantizationScheme(**group)
        for name in group["targets"]:
            own = {n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")}
            own["weight_scale"] = own["weight_scale"].float()
            values = BaseCompressor.get_value_from_registry("pack-quantized").decompress(own, scheme)["weight"]
            torch.testing.assert_close(values, found.quantized(name, found.widths[name]).dequantize(), rtol=0, atol=0)


def test_zero_points_are_refused_by_transformers(tiny: Path, tmp_path: Path) -> None:
    """When this fails they load: then mend the note that the exporter gives, and the table in the docs."""
    problem = BitAllocation(str(tiny), bits=WIDTHS, group_size=32, **SMALL)
    theirs, _ = exported(problem, mixed(problem), tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        loaded(theirs)


def test_the_real_model_loads_mixed_widths_at_the_promised_size(tmp_path: Path) -> None:
    problem = BitAllocation("smollm2-135m", target="transformers", tie="block", **SMALL)
    config = mixed(problem)
    theirs, ours = exported(problem, config, tmp_path)
    size = (theirs / "model.safetensors").stat().st_size
    assert size == pytest.approx(json.loads((theirs / "moopt.json").read_text())["size"], rel=1e-3)
    assert size == pytest.approx(problem.bytes(config), rel=1e-3)  # what the search said
    assert apart(theirs, ours) < 1e-2
