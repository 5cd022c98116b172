"""``minrnn export``: write a trained model to a file that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from minrnn_lightning.errors import InputError

SUFFIXES: dict[str, tuple[str, ...]] = {  # formats by the suffix of a file
    ".onnx": ("onnx",),
    ".pt2": ("torch", "aotinductor"),
    ".pte": ("executorch",),
    ".tflite": (),
    ".ckpt": (),
}


def export_command(
    checkpoint: str,
    output: str,
    format: Literal["onnx", "torch", "executorch", "aotinductor"] = "onnx",  # noqa: A002
    mode: Literal["step", "sequence"] = "step",
    reset: bool = False,
) -> None:
    """Write a trained model to a file that runs without this package, and print how to use it.

    Args:
        checkpoint: A .ckpt file that `minrnn fit` wrote, a folder of `minrnn publish`, or user/repository on the Hub.
        output: The file to write, such as model.onnx, model.pt2 or model.pte.
        format: onnx for onnxruntime and other runtimes, torch for a package of torch.export, executorch for devices,
            aotinductor for a library for the processor of this machine.
        mode: step takes one time step and the state, for streams; sequence takes whole sequences.
        reset: Add the input reset, true at the first step of a new sequence; the step of a policy always has it.

    Raises:
        InputError: The checkpoint cannot be used, or the model not exported in this way, or a package is missing.
    """
    from minrnn_lightning import tasks
    from minrnn_lightning.checkpoint import read_checkpoint
    from minrnn_lightning.export import export
    from minrnn_lightning.export.flatten import flatten
    from minrnn_lightning.export.snippets import snippet
    from minrnn_lightning.tasks import ClassificationTask, LanguageTask, PolicyTask, PPOTask, TaggingTask
    from minrnn_lightning.tasks.load import build_task

    _check_output(checkpoint, output, format)
    classes = {each.__name__: each for each in (LanguageTask, TaggingTask, ClassificationTask, PolicyTask, PPOTask)}
    saved = read_checkpoint(checkpoint)
    name = saved.get("task", "task without a name").removeprefix(f"{tasks.__name__}.")
    if name not in classes:
        raise InputError(
            f"{checkpoint} holds a {name}; minrnn export takes {', '.join(classes)}: "
            "load any other task in Python and give it to minrnn_lightning.export.export"
        )
    task = build_task(saved, checkpoint, classes[name], "be exported")
    export(task, output, format=format, mode=mode, reset=reset)
    print(f"Wrote {output}. To use it:\n\n{snippet(flatten(task, mode, reset=reset), format, output)}", end="")


def _check_output(checkpoint: str, output: str, format: str) -> None:  # noqa: A002
    """Refuse to overwrite the checkpoint, and the suffix of another format; other suffixes are left alone."""
    path = Path(output)
    if path.exists() and Path(checkpoint).exists() and path.samefile(checkpoint):
        raise InputError(f"output must be another file than the checkpoint, got {output}")
    formats = SUFFIXES.get(path.suffix.lower(), (format,))
    if format not in formats:
        use = f"use format {' or '.join(formats)}" if formats else "no format of minrnn export has it"
        raise InputError(f"output must have a suffix that fits the format {format}, got {output}: {use}")
