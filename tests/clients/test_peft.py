"""Low-rank repairs as an adapter, loaded by PEFT: `make test-clients`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import moopt
from moopt.backend import models
from moopt.backend.quantizers import RTN, EoRA
from moopt_problems import BitAllocation

pytestmark = pytest.mark.filterwarnings("default")  # of what the packages import
peft = pytest.importorskip("peft", reason="peft is not installed; run make test-clients")


def test_the_adapter_repairs_the_model_beside_it(tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer("smollm2-135m")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    place = tmp_path / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    how: dict[str, Any] = {"text": textwrap.__file__, "tokens": 128, "context": 64, "held_out": 0, "validation": 0}
    problem = BitAllocation(
        str(place), bits=(2, 4), group_size=32, quantizer=EoRA(RTN(), ranks=(0, 4, 8)), sensitivities=None, **how
    )
    study = moopt.Study("repairs", problem, "random").run(trials=1)
    study.history.trials[0].config = chosen = {
        name: d.options[place % len(d.options)] for place, (name, d) in enumerate(problem.decided.items())
    }
    found = study.export(0, "peft", tmp_path / "out")
    base = transformers.AutoModelForCausalLM.from_pretrained(found.path / "base", dtype=torch.float32)
    repaired = peft.PeftModel.from_pretrained(base, found.path)
    plain = models.load_model(str(place)).float()
    shipment = problem.shipment(chosen)
    plain.load_state_dict({f"{name}.weight": shipment.values(name) for name in shipment.widths}, strict=False)
    ids = torch.arange(1, 49)[None]
    with torch.inference_mode():
        ours, theirs = plain(ids).logits, repaired(ids).logits
        with repaired.disable_adapter():
            without = repaired(ids).logits
    assert (theirs - ours).abs().max() < 0.1 * (without - ours).abs().max()
