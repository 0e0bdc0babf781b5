"""GPTQ's layout: what is written is read back, bit by bit, by the reader of other tools' files."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import moopt
from moopt.errors import ExportError, QuantizationError
from moopt_problems import BitAllocation

SMALL: dict[str, Any] = {
    "text": textwrap.__file__, "tokens": 128, "context": 64, "held_out": 0, "validation": 0, "sensitivities": None,
    "group_size": 32, "tie": "linear",
}  # fmt: skip


def exported(problem: BitAllocation, config: dict[str, Any], place: Path) -> Path:
    study = moopt.Study("export", problem, "random").run(trials=1)
    study.history.trials[0].config = config
    return study.export(0, "gptq", place).path


def mixed(problem: BitAllocation) -> dict[str, Any]:
    return {n: d.options[place % len(d.options)] for place, (n, d) in enumerate(problem.decided.items())}


@pytest.mark.parametrize("quantizer", ["rtn", "rtn-symmetric"])
def test_mixed_widths_are_read_back_as_they_were_searched(tiny: Path, quantizer: str, tmp_path: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(2, 3, 4, 8), quantizer=quantizer, skip=["*.1.self_attn.o_proj"], **SMALL)
    config = mixed(problem)
    folder = exported(problem, config, tmp_path / "out")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings == json.loads((folder / "quantize_config.json").read_text())
    assert settings["dynamic"]["-:^model\\.layers\\.1\\.self_attn\\.o_proj$"] == {}
    assert settings["checkpoint_format"] == ("gptq_v2" if quantizer == "rtn" else "gptq")
    assert {each["bits"] for each in settings["dynamic"].values() if each} | {settings["bits"]} == {2, 3, 4, 8}
    again = BitAllocation(str(tiny), external={"theirs": str(folder)}, **SMALL)
    theirs, shipment, compared = again.external["theirs"], problem.shipment(config), 0
    for weight in again.inventory.linears():
        if theirs.has(weight):
            read = theirs.values(weight, shipment.original(weight.name))
            torch.testing.assert_close(read, shipment.values(weight.name), rtol=0, atol=0)
            compared += 1
    assert compared == len(problem.decided)
    tensors = load_file(folder / "model.safetensors")
    assert "model.layers.1.self_attn.o_proj.weight" in tensors
    assert tensors["model.layers.0.self_attn.q_proj.scales"].dtype == torch.float16


def test_what_gptq_lacks_is_refused(tiny: Path, tmp_path: Path) -> None:
    for how, said in (
        ({"bits": (5, 6)}, "has 5; gptq holds 2, 3, 4, 8 bits.*snap='up'"),
        ({"bits": (4,), "quantizer": "matgptq"}, "codes that gptq lacks"),
        ({"bits": (4, "nf4")}, "which is simulated"),
    ):
        problem = BitAllocation(str(tiny), **{**SMALL, **how})
        with pytest.raises(ExportError, match=said):
            exported(problem, mixed(problem), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dynamic", [{"+:(": {"bits": 4}}, ["no"], {"+:.*": 3}, {"+:.*": {"bits": 7}}])
def test_settings_that_make_no_sense_are_refused(tiny: Path, dynamic: Any, tmp_path: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(4,), **SMALL)
    folder = exported(problem, mixed(problem), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["dynamic"] = dynamic
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantizationError, match=r"(dynamic|bits)"):
        BitAllocation(str(tiny), external={"theirs": str(folder)}, **SMALL)


def test_patterns_name_what_servers_fuse(tiny: Path, tmp_path: Path) -> None:
    problem = BitAllocation(str(tiny), bits=(4, 8), **{**SMALL, "tie": "fused"})
    config = {name: 4 for name in problem.decided} | {"0.q_k_v": 8}
    folder = exported(problem, config, tmp_path / "out")
    dynamic = json.loads((folder / "quantize_config.json").read_text())["dynamic"]
    matched = {
        name: own["bits"]
        for pattern, own in dynamic.items()
        for name in ("qkv_proj", "q_proj", "o_proj")
        if re.match(pattern.removeprefix("+:"), f"model.layers.0.self_attn.{name}")
    }
    assert matched == {"qkv_proj": 8, "q_proj": 8}


def test_zero_points_of_zero_do_not_touch_their_neighbours(tiny: Path, tmp_path: Path) -> None:
    """Readers of the older format add one to whole words: what is stored as one less than 0 would carry."""
    from moopt.backend.external.packing import unpacked

    problem = BitAllocation(str(tiny), bits=(4,), **SMALL)
    folder = exported(problem, problem.baselines()["uniform-4"], tmp_path / "out")
    shipment, name = problem.shipment(problem.baselines()["uniform-4"]), "model.layers.0.mlp.down_proj"
    zeros = load_file(folder / "model.safetensors")[f"{name}.qzeros"]
    wanted = shipment.quantized(name, 4).zeros
    assert wanted is not None
    torch.testing.assert_close(unpacked(zeros.T.contiguous(), 4), wanted.cpu(), rtol=0, atol=0)
