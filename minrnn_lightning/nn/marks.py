"""Marks on parameters that say how they are to be trained; ``Task`` reads them."""

from typing import Any

from torch import Tensor, nn

MARKS = "_no_weight_decay", "_no_muon", "_maps"


def undecayed(values: Tensor) -> nn.Parameter:
    """A parameter that ``Task`` leaves out of the weight decay whatever its shape.

    Decay pulls weights towards 0, and 0 is no neutral value of a time constant or a frequency. The mark is the one that
    ``mamba_ssm`` puts on its parameters, so that optimizers written for those know it too.
    """
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def without_muon(values: Tensor) -> nn.Parameter:
    """A matrix that is no linear map, so that Muon does not train it."""
    parameter = nn.Parameter(values)
    parameter._no_muon = True  # type: ignore[attr-defined]
    return parameter


def mark_maps(weight: Tensor, maps: int) -> None:
    """Mark a weight that contains several linear maps, one below the other: Muon trains each by itself."""
    weight._maps = maps  # type: ignore[attr-defined]


class Marked(nn.Module):
    """A module whose copies keep the marks of its parameters, which PyTorch's copies of parameters lose."""

    def __getstate__(self) -> dict[str, Any]:
        marks = {
            name: {mark: value for mark, value in vars(parameter).items() if mark in MARKS}
            for name, parameter in self.named_parameters()
        }
        return {**vars(self), "marks": marks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        marks = state.pop("marks", {})
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for name, values in marks.items():
            vars(self.get_parameter(name)).update(values)
