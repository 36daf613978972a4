"""Own networks without gradient, and own callbacks that log other values than numbers."""

import re
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from diffusion_lab.errors import UserError
from diffusion_lab.networks import Network
from diffusion_lab.process import CosineSchedule
from diffusion_lab.training import DiffusionModule
from support.small_runs import fit, small_module


class Detached(Network):
    def __init__(self, *, requires_grad: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.resolution = 1, 1, 8
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=requires_grad)

    def forward(self, x_t: torch.Tensor, time: Any, condition: Any) -> torch.Tensor:
        return (self.scale * x_t).detach()


@pytest.mark.parametrize(
    ("requires_grad", "found"),
    [(True, "of which it uses none with a gradient"), (False, "of which none has requires_grad=True")],
)
def test_a_loss_without_gradient_is_an_error_that_names_the_network(requires_grad: bool, found: str) -> None:
    module = DiffusionModule(Detached(requires_grad=requires_grad), CosineSchedule(20))
    with pytest.raises(ValueError, match=f"the loss must depend on the parameters of Detached, {found}; compute its"):
        module.training_step(torch.zeros(4, 1, 8, 8), 0)
    with torch.no_grad():
        assert module.training_step(torch.zeros(4, 1, 8, 8), 0) > 0


class Logs(Callback):
    def __init__(self, value: Any) -> None:
        self.value = value

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        pl_module.log_step(norms=self.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), "log_step must receive one number for norms, got a tensor of the shape [3]; log its mean"),
        ([1.0, 2.0], "log_step must receive one number for norms, got a tensor of the shape [2]; log its mean"),
        ("high", "log_step must receive a number for norms, got 'high'."),
        (None, "log_step must receive a number for norms, got None."),
    ],
)
def test_a_value_that_is_no_single_number_is_refused_when_it_is_logged(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        fit(small_module(), 2, callbacks=[Logs(value)])
    assert isinstance(error.value, ValueError)


def test_a_tensor_with_one_element_is_logged_as_a_number() -> None:
    trainer = fit(small_module(), 2, callbacks=[Logs(torch.tensor([2.5]))])
    assert float(trainer.callback_metrics["norms"]) == 2.5
