"""The Pareto front of SmolLM2-135M: how far a real language model can be compressed. `make demo` runs this."""

import moopt
from moopt.progress import Display
from moopt.report import front_csv, write_report
from moopt.views.uniform import findings
from moopt_problems import BitAllocation

study = moopt.Study(
    "smollm2-bits",
    problem=BitAllocation("smollm2-135m", bits=(2, 3, 4, 5, 6, 8)),
    algorithm="sequential-knapsack",
    storage="runs/quickstart.journal",
    seed=0,
)

if __name__ == "__main__":
    with Display(trials=38) as display:
        study.run(trials=38, watch=display)
    print(study.front().to_string())
    print(study.history.verdict())
    print(*findings(study.history, most=5), sep="\n")
    print("best under 80 MB: trial", study.pick("size_mb <= 80").number)
    print("report:", write_report(study.history, "report.html").resolve())
    print("front: ", front_csv(study.history, "front.csv").resolve())
