"""``MuonAdamW``: Muon for the matrices of a backbone, AdamW for everything else, in one optimizer."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from minrnn_lightning.tasks.fully_sharded import complete, divide

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of Jordan's page: the largest slope at 0 that keeps values near 1
ITERATIONS = 5
EPS = 1e-7  # norm below which a gradient counts as zero
ADAM_RMS = 0.2  # the root mean square of an AdamW update in the course of a training


def orthogonalize(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Replace the singular values of each matrix by values near 1, between about 0.7 and 1.2.

    Five Newton-Schulz iterations X ← (a + b XXᵀ + c (XXᵀ)²) X. All iterates are polynomials of the first Gram matrix
    times the first X. In float32 and float64 only the smaller of the two Gram matrices is iterated, and X multiplied
    once, at the end. In 16-bit types a rounded Gram matrix has eigenvalues below 0, which its iteration would make
    large; there X is iterated, from which each Gram matrix is made anew. Singular values that are below the rounding
    error of the largest are then those of the rounding.

    Args:
        matrices: (number, rows, columns).
        dtype: Type of the products; None for that of the matrices, float32 at least.

    Returns:
        A tensor of the same shape and type.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT, dtype).mT
    wide = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp_min(EPS)  # no singular value above 1
    x = x.to(dtype or wide.dtype)
    iterate = _iterate_matrix if x.dtype.itemsize < 4 else _iterate_gram
    return iterate(x).to(matrices.dtype)


def multiplies_fast(device: torch.device) -> bool:
    """Whether products in bfloat16 take less time than in float32: on GPUs, and on CPUs with AMX."""
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_amx_tile_supported())


def _iterate_matrix(x: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _iterate_gram(x: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    product = None
    for iteration in range(ITERATIONS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        product = polynomial if product is None else polynomial @ product
        if iteration < ITERATIONS - 1:
            gram = polynomial @ gram @ polynomial  # they commute
    assert product is not None
    return torch.matmul(product, x)


class MuonAdamW(Optimizer):
    """Muon in the groups with ``muon`` true, AdamW in the others; one state, one learning rate schedule.

    Muon moves a matrix along its orthogonalised momentum (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon;
    Nesterov momentum). Of a parameter that contains several linear maps, such as those of all gates, each is a matrix
    of its own. The update is scaled by 0.2 √max(rows, columns), as Liu et al. 2025
    (https://arxiv.org/abs/2502.16982), so that its entries are as large as those of AdamW and one learning rate serves
    all widths. The weight decay is decoupled in both. ``torch.optim.Muon`` with ``match_rms_adamw``, from torch 2.9 on,
    computes the same in bfloat16; this one computes in the type given by ``dtype``, needs no newer torch than the
    package, and takes parameters that FSDP has sharded.

    Args:
        groups: Parameter groups. Besides ``params``: ``muon``, and for groups with it ``shapes``, for each parameter
            before sharding (maps, rows, columns) of the linear maps in it, one below the other, or (rows, columns) of
            one; ``lr`` and ``weight_decay`` where they differ from the arguments.
        lr: Learning rate.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Decoupled weight decay.
        momentum: Of Muon.
        dtype: Type of the products with which Muon orthogonalises; None for that of the parameters, float32 at least.
    """

    dtype: torch.dtype | None = None  # also of an optimizer that was pickled without one

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        shared = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(groups, {**shared, "muon": False})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "dtype": self.dtype}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (self._muon if group["muon"] else self._adamw)(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        """B ← μ B + (1 − μ) G, then W ← (1 − lr λ) W − lr 0.2 √max(rows, columns) · orthogonalize(μ B + (1 − μ) G)."""
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter, shape in zip(group["params"], group["shapes"], strict=True):
            if parameter.grad is not None or parameter.shape != _stacked(shape):  # others may hold its gradient
                by_shape.setdefault(tuple(shape), []).append(parameter)
        for shape, parameters in by_shape.items():
            directions = [complete(self._direction(parameter, group["momentum"])) for parameter in parameters]
            whole = _stacked(shape)
            shards = [None if each.shape == whole else _own_shard(each) for each in directions]
            matrices = torch.stack([_gather(*each, whole) for each in zip(directions, shards, strict=True)])
            updates = orthogonalize(matrices.view(-1, *shape[-2:]), self.dtype).reshape(matrices.shape)
            scale = ADAM_RMS * max(shape[-2:]) ** 0.5
            for parameter, shard, update in zip(parameters, shards, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = divide(update, parameter) if shard is None else update.flatten()[shard]
                parameter.add_(update, alpha=-group["lr"] * scale)

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient after Nesterov momentum."""
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)

    def _adamw(self, group: dict[str, Any]) -> None:
        """PyTorch's AdamW."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = [torch.zeros_like(parameter) for _ in range(2)]
                self.state[parameter].update(step=torch.tensor(0.0), exp_avg=zeros[0], exp_avg_sq=zeros[1])
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _stacked(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of the linear maps of a shape, one below the other."""
    return math.prod(shape[:-1]), shape[-1]


def _own_shard(part: Tensor) -> slice:
    """The elements of a flattened matrix of which this process holds ``part``."""
    sizes = torch.zeros(distributed.get_world_size(), dtype=torch.long, device=part.device)
    sizes[distributed.get_rank()] = part.numel()
    distributed.all_reduce(sizes)
    start = int(sizes[: distributed.get_rank()].sum())
    return slice(start, start + part.numel())


def _gather(part: Tensor, shard: slice | None, shape: tuple[int, ...]) -> Tensor:
    """The matrix of which each process holds a flat shard, or the matrix itself where nothing is sharded."""
    if shard is None:
        return part
    matrix = part.new_zeros(math.prod(shape))
    matrix[shard] = part
    distributed.all_reduce(matrix)  # shards have different sizes, which not every backend can gather
    return matrix.view(shape)
