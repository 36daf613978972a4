"""Muon for hidden matrices and convolution kernels, AdamW for all other parameters, as one optimizer."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Coefficients of the quintic iteration, which are chosen for a fast growth of small singular values (Jordan 2024)."""

SMALLEST_NORM = 1e-7
"""Lower limit of the norm by which a matrix is divided, so that a matrix of zeros stays zero."""

ADJUSTMENTS = ("original", "match_rms_adamw")

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Muon(Optimizer):
    """Muon (Jordan 2024) on matrices and on convolution kernels flattened to matrices, AdamW on other parameters.

    Muon replaces the momentum of a matrix by the nearest orthogonal matrix, approximately. torch.optim.Muon takes
    matrices only; for them, and for flattened kernels, the updates are equal. Both parts have the same learning rate.

    params: parameters, or groups of parameters with the key `orthogonalized`, as `parameter_groups` returns them.
    momentum, nesterov: momentum of the matrices, and whether it is Nesterov's.
    num_iterations: number of iterations that orthogonalize a matrix.
    adjust_lr_fn: factor on the learning rate of a matrix [A, B]. "match_rms_adamw", 0.2 sqrt(max(A, B)), gives the
        updates the size of AdamW's, so that a learning rate for AdamW can be reused (Liu et al. 2025, eq. 4).
        "original" is sqrt(max(1, A / B)).
    weight_decay: decoupled weight decay of all parameters.
    betas, eps, fused: arguments of AdamW.

    Raises ValueError for settings out of range, and for an orthogonalized parameter with fewer than two dimensions.

    >>> from diffusion_lab import Muon, OptimizerFactory
    >>> network = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    >>> optimizer = OptimizerFactory(Muon, lr=1e-3)(network)
    >>> [len(group["params"]) for group in optimizer.param_groups]  # one hidden matrix for Muon, the rest for AdamW
    [1, 5]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        num_iterations: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}.")
        if adjust_lr_fn not in ADJUSTMENTS:
            raise ValueError(f"adjust_lr_fn must be one of {', '.join(ADJUSTMENTS)}, got {adjust_lr_fn}.")
        if num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {num_iterations}.")
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        defaults |= {"num_iterations": num_iterations, "adjust_lr_fn": adjust_lr_fn, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"fused": fused, "orthogonalized": True})
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonalized"] else ():
                if parameter.ndim < 2:
                    raise ValueError(f"params must have at least two dimensions for Muon, got {list(parameter.shape)}.")
        others = [group for group in self.param_groups if not group["orthogonalized"]]
        self._adamw = AdamW(others, fused=fused) if others else None  # adds its other settings to the same groups

    @staticmethod
    def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
        """Return the group for Muon and the group for AdamW of the parameters of a network.

        Muon takes the weights of linear and convolution layers, except the first layer, the last layer, and layers of
        embeddings: layers with `emb` in their name, such as time_embedding.0.
        """
        layers = [
            module for name, module in network.named_modules() if isinstance(module, _LAYERS) and "emb" not in name
        ]
        hidden = {id(layer.weight) for layer in layers[1:-1]}
        parameters = list(network.parameters())
        groups = [
            {"params": [p for p in parameters if (id(p) in hidden) is orthogonalized], "orthogonalized": orthogonalized}
            for orthogonalized in (True, False)
        ]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonalized"] else ():
                if parameter.grad is not None:
                    self._step_matrix(parameter, parameter.grad, group)
        if self._adamw is not None:
            # Loading a state replaces the groups and the state of this optimizer.
            self._adamw.param_groups = [group for group in self.param_groups if not group["orthogonalized"]]
            self._adamw.state = self.state
            self._adamw.step()
        return loss

    def _step_matrix(self, parameter: Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        matrix = orthogonalized(update.flatten(1), group["num_iterations"])  # [A, B]
        lr = group["lr"]
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(matrix.view(parameter.shape), alpha=-lr * _lr_factor(matrix.shape, group["adjust_lr_fn"]))


def orthogonalized(matrix: Tensor, num_iterations: int = 5, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return an approximation of U V^T for a matrix U S V^T, with singular values of about 0.7 to 1.2 (Jordan 2024).

    matrix: [A, B].  dtype: type of the computation and of the result.  Returns [A, B].
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype, copy=True)
    tall = len(matrix) > matrix.shape[1]
    x = x.T if tall else x
    x.div_(x.norm().clamp(min=SMALLEST_NORM))  # singular values of at most 1
    for _ in range(num_iterations):  # a x + b (x x^T) x + c (x x^T)^2 x
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T.contiguous() if tall else x


def _lr_factor(shape: torch.Size, adjust_lr_fn: str) -> float:
    if adjust_lr_fn == "original":
        return math.sqrt(max(1, shape[0] / shape[1]))
    return 0.2 * math.sqrt(max(shape))
