"""States of optimizers in the checkpoints of other people."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from diffusion_lab.training.optimizer_states import check_loaded_states


def stepped(kind: Callable[..., Optimizer] = AdamW, **options: Any) -> Optimizer:
    network = nn.Linear(3, 5)
    optimizer = check_loaded_states(kind(network.parameters(), lr=0.25, fused=True, **options))
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return optimizer


def loaded(**changes: Any) -> Optimizer:
    """An optimizer that loads the state of another one, after changes of the state of each parameter."""
    state = stepped().state_dict()
    for values in state["state"].values():
        values |= changes
    optimizer = stepped()
    optimizer.load_state_dict(state)
    return optimizer


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"exp_avg": torch.zeros(2)}, r"exp_avg .* must have the shape \[5, 3\] of its parameter, got \[2\]"),
     ({"max_exp_avg_sq": torch.zeros(1).expand(10**11)}, r"shape \[5, 3\] of its parameter, got \[100000000000\]"),
     ({"step": torch.zeros(4)}, r"step .* must have one element, got \[4\]"),
     ({"exp_avg_sq": None}, "must contain exp_avg_sq of each parameter")],
    ids=["smaller", "endless", "steps", "missing"],
)  # fmt: skip
def test_a_state_that_does_not_fit_its_parameter_is_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        loaded(**changes)


def test_a_momentum_of_another_shape_is_refused() -> None:
    optimizer = stepped(SGD, momentum=0.9)
    state = optimizer.state_dict()
    state["state"][0]["momentum_buffer"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"momentum_buffer .* got \[1\]"):
        optimizer.load_state_dict(state)


def test_only_numbers_that_a_schedule_changes_are_taken_from_the_groups_of_a_checkpoint() -> None:
    optimizer = stepped()
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"lr": 0.5, "betas": (0.5, 0.75), "fused": None, "capturable": True, "more": 1}
    optimizer.load_state_dict(state)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["fused"], group["capturable"]) == (0.5, (0.5, 0.75), True, False)
    assert "more" not in group
    for lr in ("x", float("nan")):
        state["param_groups"][0]["lr"] = lr
        with pytest.raises(ValueError, match="lr in the state of the optimizer must be a finite number"):
            optimizer.load_state_dict(state)


def test_a_state_with_one_value_for_all_elements_gets_memory_of_its_own() -> None:
    optimizer = check_loaded_states(AdamW([nn.Parameter(torch.ones(5, 3))], lr=0.25, fused=True))
    values = {"step": torch.ones(()), "exp_avg": torch.ones(1).expand(5, 3), "exp_avg_sq": torch.ones(5, 3)}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: values}})
    moment = next(iter(optimizer.state.values()))["exp_avg"]
    assert moment.untyped_storage().nbytes() == 4 * 15
    assert torch.equal(moment, torch.ones(5, 3))
