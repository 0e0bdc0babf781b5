"""Merge SmolLM2 models tuned to prose, docstrings and code: which mixture reads what how well? Tunes them first.

python studies/merge_smollm2.py                  about 10 minutes of tuning, once, and half an hour of search on 2 cores
python studies/merge_smollm2.py --method ties --trials 30
"""

import argparse
from pathlib import Path

import moopt
from moopt import report
from moopt_problems import ModelMerge
from moopt_problems.synthetic import tuned_texts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--method", default="task_arithmetic", help="how: see moopt.backend.merging.METHODS")
parser.add_argument("--algorithm", default="auto")
parser.add_argument("--trials", type=int, default=40)
parser.add_argument("--tokens", type=int, default=2048, help="of each kind of text, a trial")
parser.add_argument("--out", type=Path, default=Path("runs/merge_smollm2"))
asked = parser.parse_args()

folders = tuned_texts.tuned()
base = folders.pop("base")
problem = ModelMerge(folders, tuned_texts.tasks(tokens=asked.tokens), base=base, method=asked.method)

asked.out.mkdir(parents=True, exist_ok=True)
name = f"{asked.method}, {asked.algorithm}, {asked.tokens} tokens"
study = moopt.Study("smollm2", problem, asked.algorithm, asked.out / f"{name}.journal")
study.run(trials=asked.trials)
print(study.front().to_string(float_format="{:.4f}".format))
print("Report:", report.write_report(study.history, asked.out / f"{name}.html"))
