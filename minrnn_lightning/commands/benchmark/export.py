"""``minrnn benchmark export``: differences, latency and size of the files that ``minrnn export`` writes."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.commands.benchmark.measure import (
    Step,
    check_sizes,
    in_turns,
    parse_choice,
    ratio,
    timing,
    warm_up,
)
from minrnn_lightning.commands.benchmark.report import Report, Row
from minrnn_lightning.commands.benchmark.step import torch_threads
from minrnn_lightning.errors import InputError, first_line
from minrnn_lightning.export import export
from minrnn_lightning.export.extra import extra_module
from minrnn_lightning.export.flatten import MODES, flatten
from minrnn_lightning.export.quantize import quantize
from minrnn_lightning.nn import MinGRU
from minrnn_lightning.tasks import ClassificationTask, LanguageTask, PolicyTask, TaggingTask

Run = Callable[[tuple[Tensor, ...]], list[Tensor]]  # the outputs of a file

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "layer": lambda dim, depth: MinGRU(dim, dim, depth, batch_first=True),
    "language": lambda dim, depth: LanguageTask(64, 64, dim=dim, depth=depth),
    "classification": lambda dim, depth: ClassificationTask(64, 10, dim=dim, depth=depth),
    "policy": lambda dim, depth: PolicyTask(11, 3, dim=dim, depth=depth),
    "tagging": lambda dim, depth: TaggingTask(64, 10, dim=dim, depth=depth),
}
EAGER = "eager"
INT8 = "+int8"  # ending of a format: the same with int8 weights


def export_benchmark(
    formats: str = "onnx,torch,executorch",
    models: str = "layer,language,classification,policy,tagging",
    modes: str = "step,sequence",
    dim: int = 64,
    depth: int = 2,
    length: int = 128,
    repeats: int = 50,
    threads: int = 1,
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Benchmark exported models against eager PyTorch: the largest difference of an output, latency and size.

    Weights and inputs are random, the batch is 1. Eager and all runtimes take turns within each repeat; ratios are
    those of the same repeat: the table has their median and, in brackets, their quartiles.

    Args:
        formats: Formats, separated by commas: onnx (in onnxruntime), openvino (an ONNX file in OpenVINO), torch,
            executorch, aotinductor, which needs a C++ compiler and minutes; onnx+int8 and so on with int8 weights.
        models: layer (a MinGRU), language, classification, policy and tagging, separated by commas.
        modes: step, sequence or both, separated by a comma.
        dim: Width of the models.
        depth: Number of layers, and of blocks.
        length: Time steps of the sequences.
        repeats: Number of times that each is timed, in turns.
        threads: Threads of PyTorch, onnxruntime and OpenVINO.
        output: Folder to write export.json, export.csv and export.png to.
        compare: The export.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A name is unknown, or a size is below 1.
    """
    chosen = parse_choice("formats", formats, {name: name for base in RUNTIMES for name in (base, base + INT8)})
    chosen_modes = parse_choice("modes", modes, {each: each for each in MODES})
    makers = {name: MODELS[name] for name in parse_choice("models", models, MODELS)}
    for name, value in {"formats": formats, "models": models, "modes": modes}.items():
        if not value:
            raise InputError(f"{name} must name at least one, got {value!r}")
    check_sizes(dim=dim, depth=depth, length=length, repeats=repeats, threads=threads)
    about = {"dim": dim, "depth": depth, "length": length, "repeats": repeats}
    with torch_threads(threads), torch.no_grad(), TemporaryDirectory() as folder:
        report = Report("export", ["ms"], about, torch.device("cpu"), output, compare)
        for name, make in makers.items():
            torch.manual_seed(0)
            model = make(dim, depth).eval()
            for mode in chosen_modes:
                steps = 1 if mode == "step" else length
                rows = _rows(name, model, mode, chosen, steps, repeats, Path(folder))
                report.add(f"{name}, {mode}", rows)
        report.save()


def _rows(
    title: str, model: nn.Module, mode: str, formats: list[str], length: int, repeats: int, folder: Path
) -> list[Row]:
    """One row for eager PyTorch and each format, of a model and a mode."""
    module = flatten(model, mode)
    inputs = tuple(_random(each.example, each.varying, length) for each in module.inputs)
    expected = module(*inputs)
    steps: dict[str, Step] = {EAGER: partial(module, *inputs)}
    found: dict[str, Row] = {EAGER: {}}
    for name in formats:
        file = folder / f"model.{name}.pt2"
        try:
            base = name.removesuffix(INT8)
            form, load = RUNTIMES[base]
            export(model if name == base else quantize(model).model, file, format=form, mode=mode)
            run = load(file)
        except (InputError, RuntimeError) as error:  # also of an exporter that does not take the model
            print(f"{title}, {mode}: {name} is left out: {first_line(error)}", file=sys.stderr)
            continue
        differences = [(y - z).abs().max().item() for y, z in zip(expected, run(inputs), strict=True)]
        found[name] = {"difference": max(differences), "file_kb": file.stat().st_size / 1e3}
        steps[name] = partial(run, inputs)
    seconds = in_turns(warm_up(steps), repeats, torch.device("cpu"))
    rows = []
    for name, times in seconds.items():
        low_to_high = dict(
            zip(("times_eager", "times_eager_low", "times_eager_high"), ratio(seconds, name, EAGER), strict=True)
        )
        rows.append(
            {"name": f"{title}, {name}", "length": length, **timing(times, length), **low_to_high, **found[name]}
        )
    return rows


def _random(example: Tensor, varying: dict[int, str], length: int) -> Tensor:
    sizes = {"batch": 1, "length": length, "past": 1}
    shape = [sizes[varying[d]] if d in varying else size for d, size in enumerate(example.shape)]
    if example.is_floating_point():
        return torch.randn(shape)
    return (
        torch.ones(shape, dtype=example.dtype) if example.dtype == torch.long else torch.zeros(shape, dtype=torch.bool)
    )


def _onnxruntime(file: Path) -> Run:
    onnxruntime = extra_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options)
    names = [each.name for each in session.get_inputs()]
    return lambda inputs: [
        torch.from_numpy(y) for y in session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    ]


def _openvino(file: Path) -> Run:
    openvino = extra_module("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return lambda inputs: [torch.from_numpy(y) for y in compiled([x.numpy() for x in inputs]).to_tuple()]


def _torch(file: Path) -> Run:
    module = torch.export.load(file).module()
    return lambda inputs: list(module(*inputs))


def _aotinductor(file: Path) -> Run:
    package: Any = torch._inductor.aoti_load_package(str(file))
    return lambda inputs: list(package(*inputs))


def _executorch(file: Path) -> Run:
    program = extra_module("executorch.runtime").Runtime.get().load_program(file)
    methods = {"forward": program.load_method("forward"), "of": program}  # a method runs as long as its program exists
    return lambda inputs: list(methods["forward"].execute(list(inputs)))


RUNTIMES: dict[str, tuple[str, Callable[[Path], Run]]] = {  # the format of a file, and the runtime that loads it
    "onnx": ("onnx", _onnxruntime),
    "openvino": ("onnx", _openvino),
    "torch": ("torch", _torch),
    "executorch": ("executorch", _executorch),
    "aotinductor": ("aotinductor", _aotinductor),
}
