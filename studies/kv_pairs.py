"""How many bits do the keys and values of SmolLM2-135M need? KVTuner's steps one by one, then the front.

    python studies/kv_pairs.py              about twenty minutes: steps.html, report.html, front.csv and a preset
    python studies/kv_pairs.py --trials 20  fewer; run it again with more, and it goes on

A profile of single layers leaves each of them a few pairs of widths, layers that are alike decide theirs together, and
a search finds which groups can do with less. Whatever is on the front can be served: the last lines do that.
"""

import argparse
from pathlib import Path

import moopt
from moopt import report
from moopt.backend import models
from moopt.backend.kv import cluster, load_preset, packed_cache, prune
from moopt_problems import KVCachePrecision
from moopt_problems.kv_cards import groups_card, profile_card, pruning_card

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--trials", type=int, default=60)
parser.add_argument("--out", type=Path, default=Path("runs/kv-pairs"))
asked = parser.parse_args()
asked.out.mkdir(parents=True, exist_ok=True)

# 1. What each pair of widths does to each layer by itself, on 4,096 tokens; kept, so that it is made once.
problem = KVCachePrecision(
    "smollm2-135m", bits=(2, 4, 8), groups="kvtuner", context=2048, tokens=2048, validation=2048, held_out=2048
)
found = problem.profile()

# 2. The pairs that no other beats, and the layers that are alike. The problem has done the same: look at what it found.
pruned = prune(found)
groups = cluster(found, pruned)
steps = [profile_card(found), pruning_card(found, pruned), groups_card(groups)]
report.write_cards(steps, asked.out / "steps.html", "What keys and values can lose")
print(f"{len(groups)} groups of layers; see {asked.out / 'steps.html'}")

# 3. The search: bytes of the cache at 2,048 tokens against the KL divergence from the original.
study = moopt.Study("kv-pairs", problem, storage=asked.out / "study.journal")
study.run(trials=asked.trials)
if study.stopped:
    raise SystemExit("Stopped. Run it again, and it goes on from here.")
print(study.front().to_string())
report.write_report(study.history, asked.out / "report.html")
report.front_csv(study.history, asked.out / "front.csv")

# 4. The best within the bytes of 4 bits each, kept as a preset and served from packed keys and values.
four_bits = problem.known(problem.baselines()["uniform-KV4"])["kv_bytes"]
trial = study.pick(f"kv_bytes <= {four_bits:.0f}")
preset = problem.save(trial.config, asked.out / "preset.json")
model, tokenizer = models.load_model("smollm2-135m"), models.load_tokenizer("smollm2-135m")
cache = packed_cache(model, load_preset(preset))
ids = tokenizer("Water boils when", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, past_key_values=cache, max_new_tokens=40, do_sample=False)[0]))
print(f"trial {trial.number}: KL {trial.values['kl']:.4f}; {cache.nbytes:,} bytes of keys and values so far")
