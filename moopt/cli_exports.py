"""What a user hands on: the candidate that was picked, as an export, and the study, as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moopt import cli_options as given
from moopt.cli_errors import FAILED
from moopt.cli_output import print_json, print_table
from moopt.errors import StudyError


def export(
    target: given.Target,
    format: Annotated[str, typer.Option(metavar="NAME", help="moopt, compressed-tensors, checkpoint, mergekit, ...")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write it; there must be nothing yet.")],
    trial: Annotated[int | None, typer.Option(min=0, help="The trial's number.")] = None,
    pick: Annotated[str | None, typer.Option(metavar="BOUND", help='The best under a bound: "size_mb <= 80".')] = None,
    snap: Annotated[
        Literal["up"] | None, typer.Option(help="Raise what some server does not load to the next option that all do.")
    ] = None,
    model: given.Model = None,
    storage: given.Kept = None,
    changes: given.Changes = None,
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """Write a trial's candidate as a folder that a server loads, with what was promised of it in moopt.json.

    Examples:
      moopt export my_study.py --trial 42 --format compressed-tensors --out served

      moopt export my_study.py --pick "size_mb <= 80" --format moopt --out served
    """
    from moopt.cli_targets import chosen

    study = chosen(target, changes, model=model, storage=storage)
    if (trial is None) == (pick is None):
        raise StudyError("Say which candidate: --trial with its number, or --pick with a bound.")
    number = trial if pick is None else study.pick(pick).number
    assert number is not None
    found = study.export(number, format, out, snap)
    if as_json:
        print_json({"path": str(out), **found.manifest})
        return
    print(f"Wrote trial {number} to {out}: {found.manifest['size']:,} bytes of weights.")
    for line in (*found.manifest["notes"], *found.serve):
        print(line)


def gate(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="What moopt export wrote.")],
    max_kl: Annotated[float | None, typer.Option(min=0.0, help="The most KL divergence, held out if it was.")] = None,
    max_size: Annotated[float | None, typer.Option(min=0.0, help="The most megabytes of weights.")] = None,
    bounds: Annotated[list[str] | None, typer.Option("--bound", metavar="BOUND", help='"perplexity <= 20".')] = None,
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """Hold an export to bounds, for CI: 0 if it keeps to all, 1 if not, 2 if a file is missing or was altered.

    Examples:
      moopt gate served --max-kl 0.3 --max-size 80

      moopt gate served --bound "top1_agreement >= 0.9"
    """
    from moopt.exporting import read
    from moopt.promises import checked

    asked = [f"kl <= {max_kl}"] if max_kl is not None else []
    asked += [f"size <= {max_size}"] if max_size is not None else []
    asked += bounds or []
    if not asked:
        raise StudyError("Say what to hold it to: --max-kl, --max-size or --bound.")
    checks = checked(read(path), " and ".join(asked))
    if as_json:
        print_json(
            {"checks": [{**c.bound._asdict(), "found": c.value, "of": c.where, "holds": c.holds} for c in checks]}
        )
    else:
        for c in checks:
            verdict = "PASS" if c.holds else "FAIL"
            print(f"{verdict} {c.bound.name} {c.value:.6g} ({c.where}), {c.bound.operator} {c.bound.value:g}")
    if not all(check.holds for check in checks):
        raise typer.Exit(FAILED)


def verify(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="What moopt export wrote.")],
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """Load an export in the program it is for, measure it on held-out text, and print what was promised and found.

    1 if something is not as promised, 2 if a file is missing or was altered.

    Examples:
      moopt verify served
    """
    from moopt.promises import verify as verified

    kept = verified(path)
    if as_json:
        print_json({"figures": [each._asdict() for each in kept]})
    else:
        verdicts = {True: "as promised", False: "NOT as promised", None: "promised on other text"}
        rows = [[k.name, f"{k.promised:.6g}", k.where, f"{k.found:.6g}", verdicts[k.holds]] for k in kept]
        print_table(["figure", "promised", "on", "found", ""], rows, f"{path}, by the program it is for")
    if any(each.holds is False for each in kept):
        raise typer.Exit(FAILED)


def bundle(
    target: given.Target,
    out: Annotated[Path, typer.Option(metavar="FILE.zip", help="Where to write it; there must be nothing yet.")],
    model: given.Model = None,
    storage: given.Kept = None,
    changes: given.Changes = None,
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """Write a study as one file that others can check: its trials, its own Python file, versions, hashes, licences.

    Examples:
      moopt bundle my_study.py --out my_study.zip

      moopt bundle bit-allocation --model smollm2-135m --storage bits.journal --out bits.zip
    """
    from moopt import bundles
    from moopt.cli_targets import chosen

    study = chosen(target, changes, model=model, storage=storage)
    kept = [*(changes or ()), *([f"model={model}"] if model is not None else [])]
    manifest = bundles.write(study, target, kept, out)
    if as_json:
        print_json({"path": str(out), **manifest})
        return
    print(f"Wrote {manifest['trials']} trials of {study.name} to {out}, with {', '.join(manifest['files'])}.")
    for name, licence in manifest["licences"].items():
        print(f"{name}: {licence or 'no licence named in its files'}")


def reproduce(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What moopt bundle wrote. Its Python file is run.")],
    trial: Annotated[int, typer.Option(min=0, help="The number of a completed trial.")],
    as_json: given.AsJson = False,
    debug: given.Debug = False,
) -> None:
    """Build a bundle's study again, evaluate one of its trials, and print what was stored and what is found.

    1 if a figure differs by more than 1%, 2 if the bundle was altered or its problem is another one here.

    Examples:
      moopt reproduce my_study.zip --trial 42
    """
    from moopt import bundles

    found = bundles.reproduce(path, trial)
    if as_json:
        figures = [{**each._asdict(), "verdict": each.verdict} for each in found.figures]
        print_json({"trial": trial, "figures": figures, "changed": found.changed})
    else:
        rows = [[f.name, f.where, f"{f.stored:.9g}", f"{f.found:.9g}", f.verdict] for f in found.figures]
        print_table(["figure", "on", "stored", "found", ""], rows, f"Trial {trial}")
        for name, (theirs, here) in found.changed.items():
            print(f"{name} was {theirs}, here it is {here}.")
    if any(each.verdict == "differs" for each in found.figures):
        raise typer.Exit(FAILED)
