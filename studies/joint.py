"""Merge, quantize and cache in one search: three SmolLM2 models tuned to kinds of text become one that ships.

python studies/joint.py                  about 10 minutes of tuning, once, and half an hour of search on 2 cores
python studies/joint.py --trials 200
"""

import argparse
from pathlib import Path

import moopt
from moopt import report
from moopt.backend.merging.tasks import TextLoss
from moopt_problems import BitAllocation, Joint, KVCachePrecision, ModelMerge
from moopt_problems.synthetic import tuned_texts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--trials", type=int, default=100)
parser.add_argument("--tokens", type=int, default=3072, help="of a trial")
parser.add_argument("--out", type=Path, default=Path("runs/joint"))
asked = parser.parse_args()

folders = tuned_texts.tuned()
base = folders.pop("base")
loss = TextLoss("loss", "mix", asked.tokens)
problem = Joint(
    {
        "merge": ModelMerge(folders, [loss], base=base),
        "bits": BitAllocation(base, bits=(3, 4, 8), objectives=["size_mb"], tie="block"),
        "kv": KVCachePrecision(base, objectives=["kv_bytes"], groups="layers", bits=(2, 4, 8)),
    }
)

asked.out.mkdir(parents=True, exist_ok=True)
study = moopt.Study("joint", problem, "auto", asked.out / f"{asked.tokens} tokens.journal")
study.run(trials=asked.trials)
print(study.front().to_string(float_format="{:.4f}".format))
print("Report:", report.write_report(study.history, asked.out / f"{asked.tokens} tokens.html"))
