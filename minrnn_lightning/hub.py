"""Models as folders, the format of the Hugging Face Hub: model.safetensors, config.json, tokenizer.json, README.md."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from minrnn_lightning.errors import InputError, first_line, packages_passed
from minrnn_lightning.results import version, write_atomic

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"
PACKAGE = "minrnn_lightning.tasks."  # where the classes are that the configuration of a model may name
PACKAGES = ("minrnn-lightning", "torch", "lightning")
MINARI = re.compile(r"[-\w][-\w/]*/[-\w]+-v\d+")  # names of its data sets that have a namespace
DATA_SETS = {"ShakespeareDataModule": "karpathy/tiny_shakespeare"}  # on the Hub, by data module
CARD_TEXT = """
# {title}

{description}

```python
from minrnn_lightning import {task}

task = {task}.from_pretrained("{name}")  # a folder, or user/repository
```
{command}
## Training

{training}

## Results

{results}

## Hyper-parameters

```yaml
{settings}
```
"""


def is_pretrained(name: str | Path) -> bool:
    """Whether a name means a folder or a model of the Hub such as ``user/repository``, rather than a file."""
    path = Path(name)
    of_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) and not path.suffix[1:].isalpha()
    return path.is_dir() or (bool(of_hub) and not path.exists())


def find_folder(name: str | Path, **download: Any) -> Path:
    """The folder of a model, downloaded from the Hub unless it is here.

    Args:
        name: A folder, or a model of the Hub such as ``user/repository``.
        download: Arguments of ``huggingface_hub.snapshot_download``.

    Raises:
        InputError: There is no such folder, and the Hub does not give the model.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        return Path(snapshot_download(str(name), allow_patterns=[WEIGHTS, CONFIG, TOKENIZER], **download))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{name} is neither a folder here nor a model that the Hugging Face Hub gives ({hub_reason(error)}): give "
            "a folder that save_pretrained wrote, or user/repository and a connection"
        ) from error


def upload(folder: str | Path, repo_id: str) -> str:
    """Upload a folder as it is to the Hub, with the token that ``hf auth login`` stored.

    Args:
        folder: The folder.
        repo_id: ``user/repository``, which is made if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        InputError: The Hub does not take it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with uploads(repo_id):
        name = api.create_repo(repo_id, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder))


@contextmanager
def uploads(repo_id: str) -> Iterator[None]:
    """Raise an ``InputError`` instead of an error of the client of the Hub, or of the HTTP client that it uses."""
    try:
        yield
    except Exception as error:
        if packages_passed(error)[-1] == "minrnn_lightning":
            raise
        raise InputError(f"the Hugging Face Hub does not take {repo_id}: {hub_reason(error)}") from error


def hub_reason(error: BaseException) -> str:
    """The first sentence of an error of the Hub, without a full stop, and without the number of an HTTP status."""
    first, *others = [line for line in str(error).splitlines() if line.strip()] or [first_line(error)]
    line = others[0] if others and re.match(r"\d{3} ", first) else first
    return line.partition(". ")[0].rstrip(".")


def read_pretrained(name: str | Path) -> dict[str, Any]:
    """Read a model as the parts of a checkpoint of Lightning; nothing in it is executed.

    Args:
        name: A folder that ``save_pretrained`` wrote, or a model of the Hub.

    Raises:
        InputError: There is no such model, or one of its files is missing or damaged.
    """
    folder = find_folder(name)
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} holds no {WEIGHTS}: save the model there again")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} is damaged or cut short: save the model there again") from error
    checkpoint: dict[str, Any] = {
        name: config[name] for name in ("task", "hyper_parameters", "environment") if name in config
    }
    training = config.get("training", {})
    checkpoint |= {"state_dict": tensors, "training": training}
    checkpoint["pytorch-lightning_version"] = config.get("versions", {}).get("lightning") or version("lightning")
    if (folder / TOKENIZER).exists():
        text = _read_vocabulary(folder / TOKENIZER)
        checkpoint[training.get("data", "TextDataModule")] = {"tokenizer": text, "corpus": training.get("corpus")}
    return checkpoint


def _read_vocabulary(file: Path) -> str:
    if not file.is_file():
        raise InputError(f"{file} must be a file with the vocabulary, got a folder: save the model there again")
    try:
        return file.read_text(encoding="utf-8")
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model in a folder.

    Raises:
        InputError: There is none, or it is not that of a task.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"{folder} is no folder that save_pretrained wrote: it holds no {CONFIG}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of text and of JSON
        raise InputError(f"{file} is damaged: {error}") from error
    expected = {"task": str, "hyper_parameters": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(name), kind) for name, kind in expected.items()):
        raise InputError(
            f"{file} is not the configuration of a task of minrnn-lightning: it needs the class as `task` and its "
            "`hyper_parameters`"
        )
    for name in ("training", "versions", "environment"):
        if not isinstance(config.get(name, {}), dict):
            raise InputError(f"{file} is damaged: {name} must be a dictionary, got {config[name]!r}")
    if not isinstance(config.get("training", {}).get("data", ""), str):
        raise InputError(f"{file} is damaged: data of training must be the name of a class")
    return config


def write_pretrained(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], tokenizer: Any) -> None:
    """Write a model; each file is complete or not there, and the configuration comes last.

    Args:
        folder: An existing folder.
        config: Plain values.
        tensors: The weights by name.
        tokenizer: A ``tokenizers.Tokenizer``, or None.

    Raises:
        InputError: A value of the configuration cannot be written as JSON.
    """
    try:
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"{CONFIG} can hold numbers, texts, lists and dictionaries only: {error}") from error
    (folder / CONFIG).unlink(missing_ok=True)  # without it the folder is no model while files of two are mixed
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(folder / WEIGHTS, save(own, metadata={"format": "pt"}))
    if tokenizer is None:
        (folder / TOKENIZER).unlink(missing_ok=True)
    else:
        write_atomic(folder / TOKENIZER, tokenizer.to_str(pretty=True).encode())
    write_atomic(folder / CONFIG, text.encode())


def model_config(
    task_class: type, hyper_parameters: Mapping[str, Any], training: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration of a model.

    Args:
        task_class: Class of the task.
        hyper_parameters: Plain values of its arguments.
        training: What it was trained on, from ``training_facts``; empty if unknown.
        environment: What a policy knows of its environment; empty for other tasks.
    """
    path = f"{task_class.__module__}.{task_class.__qualname__}"
    if path.startswith(PACKAGE):
        path = PACKAGE + task_class.__qualname__
    config = {"model_type": "minrnn", "task": path, "hyper_parameters": dict(hyper_parameters)}
    parts = {"environment": dict(environment), "training": dict(training)}
    config |= {name: part for name, part in parts.items() if part}
    return config | {"versions": {name: version(name) for name in PACKAGES}}


def training_facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its training: data, their settings, steps, and the metrics of its weights.

    Args:
        checkpoint: What ``read_checkpoint`` returned, of Lightning or of ``save_pretrained``.
    """
    if "training" in checkpoint:
        return dict(checkpoint["training"])
    names = (name for name, entry in checkpoint.items() if isinstance(entry, dict) and name.endswith("DataModule"))
    name = next(names, None)
    corpus = checkpoint[name].get("corpus") if name else None
    facts = plain_facts(
        name,
        checkpoint.get("datamodule_hyper_parameters", {}),
        checkpoint.get("global_step"),
        checkpoint.get("metrics", {}),
    )
    return facts | ({"corpus": corpus} if isinstance(corpus, str) else {})


def plain_facts(
    data: str | None, settings: Mapping[str, Any], steps: int | None, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Facts of a training as plain values, without folders of this machine."""
    kept = {name: value for name, value in settings.items() if name != "data_dir" and _is_plain(value)}
    named = {name: _without_folders(value) for name, value in kept.items()}
    numbers = {name: round(float(value), 6) for name, value in metrics.items() if math.isfinite(value)}
    facts = {"data": data, "data_hyper_parameters": named, "steps": steps, "metrics": numbers}
    return {name: fact for name, fact in facts.items() if fact not in (None, {})}


def _without_folders(value: Any) -> Any:
    """The last part of a path; a name of the Hub or of Minari, which has slashes too, as it is."""
    if not isinstance(value, str) or "/" not in value:
        return value
    named = is_pretrained(value) or MINARI.fullmatch(value)
    return value if named and not Path(value).exists() else Path(value).name


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def model_card(config: Mapping[str, Any], size: int, name: str, license: str = "apache-2.0") -> ModelCard:  # noqa: A002
    """The README.md of a model.

    Args:
        config: Its configuration.
        size: Number of its parameters.
        name: Its folder or name on the Hub.
        license: Licence of the weights, as the Hub calls it.
    """
    task, options, training = config["task"].rpartition(".")[2], config["hyper_parameters"], config.get("training", {})
    metrics, settings = (training.get(key, {}) for key in ("metrics", "data_hyper_parameters"))
    data = training.get("data")
    language = task == "LanguageTask"
    mixer = options.get("mixer", "mingru")
    mixers = mixer if isinstance(mixer, str) else "+".join(mixer)
    path = settings.get("path")
    sets = [DATA_SETS[data]] if data in DATA_SETS else [path] if isinstance(path, str) and is_pretrained(path) else []
    head: dict[str, Any] = {"library_name": "minrnn-lightning", "license": license}
    head["tags"] = ["minrnn-lightning", "recurrent", *dict.fromkeys(mixers.split("+"))]
    head |= {"pipeline_tag": "text-generation"} if language else {}
    head |= {"datasets": sets} if sets else {}
    head |= {"metrics": sorted({metric.rpartition("/")[2] for metric in metrics})} if metrics else {}
    on = f"Trained with `{data}`" if data else "The training data are not known"
    on += f" for {training['steps']:,} steps" if "steps" in training else ""
    rows = [f"| {key} | {value:.4g} |" for key, value in metrics.items()]
    recipe = {"model": dict(options)} | ({"data": settings} if settings else {})
    text = CARD_TEXT.format(
        title=name,
        description=f"A `{task}` of [minrnn-lightning](https://pypi.org/project/minrnn-lightning/) with the mixer "
        f"`{mixers}`, {options.get('dim')} wide, {size:,} parameters.",
        task=task,
        name=name,
        command=f'\n```\nminrnn generate --checkpoint {name} --prompt "The "\n```\n' if language else "",
        training=f"{on}.",
        results="\n".join(["| metric | value |", "|---|---|", *rows]) if metrics else "No metrics are known.",
        settings=yaml.safe_dump(recipe, sort_keys=False).rstrip(),
    )
    from huggingface_hub import ModelCard

    return ModelCard(f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{text}")
