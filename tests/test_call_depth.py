"""Calls from ``training_step`` to the kernel of the scan; ``python tests/test_call_depth.py`` lists them."""

import sys
from pathlib import Path

import torch

import minrnn_lightning
from minrnn_lightning import LanguageTask
from minrnn_lightning.ops.cpu import launch

PACKAGE = Path(minrnn_lightning.__file__).parent
MODULE_CALL = ("_wrapped_call_impl", "_call_impl")  # the functions behind torch.nn.Module.__call__
LIMIT = 16  # calls from training_step to gated_scan_and_state


def calls() -> list[tuple[str, str]]:
    """Group and function of every call from a language model's training step to the kernel, the outermost first."""
    task = LanguageTask(8, 8, mixer="mingru", dim=8, depth=1)
    task.log = lambda *args, **options: None  # there is no Trainer
    tokens = torch.zeros(2, 4, dtype=torch.long)
    found: list[tuple[str, str]] = []

    def profile(frame, event, argument):
        if event == "call" and frame.f_code is launch.forward.__code__ and not found:
            while frame.f_code is not LanguageTask.training_step.__code__:
                file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
                if PACKAGE in file.parents:
                    found.append(("package", f"{file.relative_to(PACKAGE)} {name}"))
                else:
                    found.append(("nn.Module" if name in MODULE_CALL else "dispatcher", f"{file.name} {name}"))
                frame = frame.f_back

    sys.setprofile(profile)
    try:
        task.training_step((tokens, tokens), 0)
    finally:
        sys.setprofile(None)
    return found[::-1]


def number_of_scan(found: list[tuple[str, str]]) -> int:
    """The number of the call of ``gated_scan_and_state``, counted from 1."""
    return 1 + found.index(("package", "ops/scan.py gated_scan_and_state"))


def listing() -> str:
    """The calls, and how many of each group there are."""
    found = calls()
    lines = [f"{number:2}  {group:10}  {name}" for number, (group, name) in enumerate(found, 1)]
    groups = [group for group, _ in found]
    counts = ", ".join(f"{groups.count(group)} of the {group}" for group in dict.fromkeys(groups))
    lines.append(f"{number_of_scan(found)} calls to gated_scan_and_state, {len(found)} to the kernel: {counts}")
    return "\n".join(lines)


def test_few_calls_from_the_training_step_to_the_scan():
    found = calls()
    assert found[-1] == ("package", "ops/cpu/launch.py forward")
    assert number_of_scan(found) <= LIMIT, listing()


if __name__ == "__main__":
    print(listing())
