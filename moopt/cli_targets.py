"""Finds the study that a user names on the command line, and what they override of it. Runs nothing."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from moopt import algorithms, conditions
from moopt.algorithms import Algorithm
from moopt.errors import AlgorithmError, MooptError, StudyError
from moopt.preference import Preference
from moopt.problem import Problem, Resources
from moopt.study import Study

STUDY_ARGUMENTS = ("name", "algorithm", "storage", "seed")
RESOURCES = ("device", "threads")
DEFAULT_STORAGE = "moopt.journal"
"""Where a problem's study is kept when nobody says where."""


class TargetError(StudyError):
    """What was named on the command line is no study, or cannot be made one."""


def study(target: str, overrides: Mapping[str, Any] | None = None) -> Study:
    """The study that a target names, with overrides.

    Args:
        target: `FILE.py:NAME`, `package.module:NAME`, or the name of a problem that a plug-in registers (entry point
            `moopt.problems`). NAME is a study, a problem, a problem class or a function without arguments that
            returns one; left out, the only study of the file.
        overrides: Arguments of the study (name, algorithm, storage, seed), its resources (device, threads) or its
            problem: see `with_overrides`.

    Raises:
        TargetError: there is no such file, module or name, it raises, or it is no study.
    """
    found, name = _named(target)
    changes = dict(overrides or {})
    if inspect.isclass(found) and issubclass(found, Problem):
        own = {key: changes.pop(key) for key in list(changes) if key not in (*STUDY_ARGUMENTS, *RESOURCES)}
        found = _constructed(found, own)
    elif callable(found) and not isinstance(found, (Study, Problem)):
        found = _called(found, target)
    if isinstance(found, Problem):
        found = Study(name, found, storage=DEFAULT_STORAGE)
    if not isinstance(found, Study):
        raise TargetError(
            f"{target} is of type {type(found).__name__}; expected a moopt.Study, a moopt.Problem, or a function "
            "without arguments that returns one."
        )
    return with_overrides(found, changes)


def chosen(target: str, changes: Iterable[str] | None, **options: Any) -> Study:
    """The study that a target names, with what --set and the options say; an option goes before a --set."""
    overrides = settings(changes or ())
    return study(target, overrides | {key: value for key, value in options.items() if value is not None})


def problem(target: str) -> Problem:
    """The problem that a target names, with settings after an @ if need be: "dtlz2@variables=6".

    Raises:
        TargetError: there is no such problem, or a setting that it lacks.
    """
    where, settings = with_settings(target)
    return study(where, settings).problem


def algorithm(text: str) -> Algorithm:
    """The algorithm of a name, with settings after an @ if need be: "nsga2@population_size=20".

    An entry of a mapping has a dot: "rco@budgets.size_mb=80,88".

    Raises:
        AlgorithmError: there is no such algorithm, or a setting that it lacks or cannot take.
    """
    name, given = with_settings(text)
    made = algorithms.create(name)
    known = [key for key in inspect.signature(type(made)).parameters if given]
    if unknown := [key for key in given if key not in known]:
        raise AlgorithmError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
    return type(made)(**given) if given else made


def plugin(name: str) -> Any:
    """What a plug-in registers as a problem of that name.

    Raises:
        TargetError: nothing is registered; lists what is.
    """
    return _named(name)[0]


def with_overrides(found: Study, changes: Mapping[str, Any]) -> Study:
    """The study made again with some arguments changed; the same study if there are none.

    The problem is constructed again from its `arguments()`: its constructor's arguments as it was given them.

    Raises:
        TargetError: an argument that neither the study nor its problem has.
    """
    if not changes:
        return found
    asked = dict(changes)
    present = (found.name, found.asked, found.storage.location, found.seed)
    arguments = {key: asked.pop(key, value) for key, value in zip(STUDY_ARGUMENTS, present, strict=True)}
    for key in ("name", "storage"):  # digits are a name too
        arguments[key] = _like("" if arguments[key] is not None else None, arguments[key])
    if isinstance(arguments["algorithm"], str) and "@" in arguments["algorithm"]:
        arguments["algorithm"] = algorithm(arguments["algorithm"])
    resources = Resources(**{key: asked.pop(key, getattr(found.resources, key)) for key in RESOURCES})
    regions = {key: asked.pop(key, getattr(found, key)) for key in ("preference", "budgets")}
    problem = _rebuilt(found.problem, asked) if asked else found.problem
    return Study(problem=problem, resources=resources, **regions, **arguments)


def preferred(problem: Problem, bounds: Iterable[str], weights: Iterable[str]) -> Preference | None:
    """What a user prefers, as they type it; None if that is nothing.

    Args:
        problem: Whose objectives.
        bounds: Such as "size_mb <= 80", with >= for an objective to maximise.
        weights: Such as "kl=2".

    Raises:
        TargetError: a bound is on the wrong side.
        StudyError: there is no such objective, or what is written cannot be read.
    """
    objectives, what = {o.name: o for o in problem.objectives}, f"objective of {type(problem).__name__}"
    worst: dict[str, float] = {}
    for name, operator, value in (bound for text in bounds for bound in conditions.bounds(text, objectives, what)):
        expected, better = ("<=", "least") if objectives[name].direction == "min" else (">=", "greatest")
        if operator != expected:
            bound = f"{name} {expected} {value:g}"
            raise TargetError(
                f"{name} is best where it is {better}; expected a bound such as {bound!r}, got {operator}."
            )
        worst[name] = value
    counts = dict(parse(text) for text in weights)
    return Preference(worst or None, counts or None) if worst or counts else None


def budgets(texts: Iterable[str]) -> dict[str, list[Any]]:
    """Bounds by objective, as a user types them: "size_mb=80,88" and "size_mb=96" are three of them."""
    found: dict[str, list[Any]] = {}
    for name, value in map(parse, texts):
        found.setdefault(name, []).extend(value if isinstance(value, tuple) else [value])
    return found


def parse(text: str) -> tuple[str, Any]:
    """`key=value` as a user types it: `bits=2,4,8` is a tuple, `group_size=32` a number, `none` is None.

    Raises:
        TargetError: there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise TargetError(f"Cannot read {text!r}; expected key=value, such as group_size=32 or bits=2,4,8.")
    if "," not in value:
        return key.strip(), _scalar(value)
    return key.strip(), tuple(_scalar(part) for part in value.split(",") if part.strip())


def settings(texts: Iterable[str]) -> dict[str, Any]:
    """Several of them by key; `external.theirs=folder` is an entry of a mapping.

    Raises:
        TargetError: as `parse`, or a key is a value and a mapping at once.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, value = parse(text)
        name, dot, entry = key.partition(".")
        inner = found.setdefault(name, {}) if dot else None
        if isinstance(found.get(name), dict) is not bool(dot):
            raise TargetError(f"Got {name!r} as a value and, in {text!r}, as a mapping's entry; expected one of them.")
        if inner is None:
            found[name] = value
        else:
            inner[entry] = value
    return found


def with_settings(text: str) -> tuple[str, dict[str, Any]]:
    """A name and what follows it after an @: `dtlz2@variables=6,objectives=3`, `bit-toy@layers=100,bits=2,4,8`."""
    name, _, rest = text.partition("@")
    return name, settings(part for part in re.split(r",(?=[\w.-]+=)", rest) if part)


def _scalar(text: str) -> Any:
    text = text.strip()
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _named(target: str) -> tuple[Any, str]:
    """What the target names, and what a study of it would be called."""
    where, _, name = target.partition(":")
    if where.endswith(".py") or "/" in where:
        module, called = _file(Path(where)), Path(where).stem
    else:
        plugins = {point.name: point for point in entry_points(group="moopt.problems")}
        if not name and where in plugins:
            return _guarded(plugins[where].load, where, None), where
        module, called = _module(where, plugins), where.rpartition(".")[2]
    if not name:
        return _only_study(module, where), called
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        raise TargetError(f"{where} has no {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}")
    return getattr(module, name), name


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"There is no file {path}.")
    if path.stem in sys.stdlib_module_names:
        raise TargetError(f"{path} hides Python's own module {path.stem!r} from all that needs it; rename the file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{path} is no Python file: its name does not end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent.resolve()))
    loader = spec.loader
    _guarded(lambda: loader.exec_module(module), str(path), path)
    return module


def _module(name: str, plugins: Iterable[str]) -> ModuleType:
    sys.path.insert(0, "")
    try:
        known = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        known = False
    if not known:
        some = f" Problems by name: {', '.join(sorted(plugins))}." if plugins else ""
        raise TargetError(f"There is no module or problem {name!r}; a file's name ends in .py.{some}")
    return cast(ModuleType, _guarded(lambda: importlib.import_module(name), name, None))


def _only_study(module: ModuleType, where: str) -> Study:
    studies = {name: value for name, value in vars(module).items() if isinstance(value, Study)}
    if len({id(value) for value in studies.values()}) == 1:
        return next(iter(studies.values()))
    names = studies or [
        name for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Problem) and value.__module__ == module.__name__
    ]  # fmt: skip
    said = f"defines the studies {', '.join(studies)}" if studies else "defines no study"
    hint = f"name one: {where}:{next(iter(names))}" if names else "expected a moopt.Study at its top level"
    raise TargetError(f"{where} {said}; {hint}.")


def _called(function: Callable[[], Any], target: str) -> Any:
    try:
        required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):
        required = []
    if required:
        raise TargetError(f"{target} needs the arguments {', '.join(required)}; expected a function without any.")
    source = inspect.getsourcefile(function)
    return _guarded(function, target, Path(source) if source else None)


def _constructed(kind: type[Problem], arguments: Mapping[str, Any]) -> Problem:
    parameters = inspect.signature(kind).parameters
    _known(kind.__name__, arguments, parameters)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and parameter.kind not in variadic and name not in arguments:
            raise TargetError(f"{kind.__name__} needs {name}: give --set {name}=VALUE.")
    given = {key: _like(parameters[key].default, value) for key, value in arguments.items()}
    return cast(Problem, _guarded(lambda: kind(**given), kind.__name__, None))


def _rebuilt(problem: Problem, changes: Mapping[str, Any]) -> Problem:
    kind = type(problem)
    tell = getattr(problem, "arguments", None)
    if tell is None:
        raise TargetError(
            f"{kind.__name__} cannot be changed from outside ({', '.join(changes)}): give it a method `arguments()` "
            f"that returns its constructor's arguments, or name the class itself. "
            f"A study has {', '.join((*STUDY_ARGUMENTS, *RESOURCES))}."
        )
    present = dict(tell())
    _known(kind.__name__, changes, present)
    arguments = {**present, **{key: _like(present.get(key), value) for key, value in changes.items()}}
    return cast(Problem, _guarded(lambda: kind(**arguments), kind.__name__, None))


def _known(what: str, asked: Iterable[str], known: Iterable[str]) -> None:
    expected = [*known, *STUDY_ARGUMENTS, *RESOURCES]
    for key in asked:
        if key not in expected:
            near = difflib.get_close_matches(key, expected, n=1)
            hint = f"did you mean {near[0]!r}? It" if near else "it"
            raise TargetError(f"{what} has no argument {key!r}; {hint} has {', '.join(dict.fromkeys(expected))}.")


def _like(present: Any, value: Any) -> Any:
    """A value in the shape of what it replaces: one value for a tuple, digits for a string."""
    if isinstance(present, (tuple, list)) and not isinstance(value, (tuple, list)):
        return (value,)
    return str(value) if isinstance(present, str) and type(value) in (int, float) else value


def _guarded(run: Callable[[], Any], what: str, path: Path | None) -> Any:
    """The result of a user's code; what it raises becomes a `TargetError` that names the line, given the file."""
    try:
        return run()
    except MooptError as error:
        raise type(error)(f"{_place(error, what, path)}: {error}" if path else str(error)) from error
    except (Exception, SystemExit) as error:
        message = error.msg if isinstance(error, SyntaxError) else error
        raise TargetError(f"{_place(error, what, path)}: {type(error).__name__}: {message}") from error


def _place(error: BaseException, what: str, path: Path | None) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if path is not None and Path(frame.filename).resolve() == path.resolve()]
    return f"{inside[-1].filename}, line {inside[-1].lineno}" if inside else what
