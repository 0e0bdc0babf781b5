"""The arguments and options that commands share. Says how they are written, and does nothing."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Target = Annotated[
    str,
    typer.Argument(
        metavar="FILE_OR_MODULE[:NAME]",
        help="NAME is a moopt.Study, a problem, a problem class, or a function without arguments that returns one. "
        "Left out: the only study of the file. Or the name of an installed problem, such as bit-allocation.",
    ),
]
Stored = Annotated[str, typer.Argument(metavar="STORAGE", help="The study's file, or a database URL.")]
Named = Annotated[str | None, typer.Option("--study", help="Which study, if the storage has several.")]
Trials = Annotated[int, typer.Option(min=1, help="Trials in total, those of earlier runs included.")]
Model = Annotated[str | None, typer.Option(help="The problem's model: a name, a Hugging Face id or a folder.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change an argument of the study (name, algorithm, storage, seed), of its resources (device, threads) "
        "or of its problem: --set bits=2,4,8 --set group_size=32. May be repeated.",
    ),
]
Direction = Literal["max", "min"]
When = Literal["every", "finalists"]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show all that is logged, what workers print, and tracebacks.")]
