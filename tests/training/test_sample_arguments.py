"""The forms in which `DiffusionModule.sample` takes seeds, labels, guidance and samplers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lab.generation import SeededImages
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.networks import Condition, Labels
from diffusion_lab.paths import CONF
from diffusion_lab.process import CosineSchedule, GaussianProcess
from diffusion_lab.samplers import DDIM, DPMSolver, Euler, Heun, NoClipping, TrailingTimes
from diffusion_lab.training import DiffusionModule
from diffusion_lab.training.sample_arguments import as_sampler
from support.small_runs import small_module

GROUPS = ("sampler", "time_grid", "clipping")


@pytest.fixture(scope="module")
def module() -> DiffusionModule:
    """A network with three classes, which are named."""
    module = small_module(labels=Labels(3, dropout=0.1))
    module.class_names = ("cat", "dog", "Ship, boat")
    with torch.no_grad():
        for network in module.ema.networks.values():
            for parameter in network.parameters():
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return module


def test_a_number_of_images_stands_for_the_first_seeds(module: DiffusionModule) -> None:
    images = module.sample(range(4), num_steps=2)
    for seeds in (4, [0, 1, 2, 3], torch.arange(4), np.arange(4)):
        assert torch.equal(module.sample(seeds, num_steps=2), images)  # type: ignore[arg-type]


def test_a_number_is_the_scale_of_classifier_free_guidance(module: DiffusionModule) -> None:
    guided = module.sample(2, guidance=Guidance(Strength(3.0)), num_steps=2)
    for guidance in (3.0, 3, Strength(3.0)):
        assert torch.equal(module.sample(2, guidance=guidance, num_steps=2), guided)
    assert torch.equal(module.sample(2, guidance_scale=3.0, num_steps=2), guided)
    assert not torch.equal(module.sample(2, num_steps=2), guided)


def test_labels_are_numbers_or_names_of_one_class_or_of_each_image(module: DiffusionModule) -> None:
    def sample(label: Any) -> torch.Tensor:
        return module.sample(4, label=label, num_steps=2)

    wanted = module.sample(4, Condition(torch.tensor([2, 0, 2, 0])), num_steps=2)
    for label in ([2, 0], ["ship", "Cat"], torch.tensor([2, 0, 2, 0]), ("Ship, boat", 0)):
        assert torch.equal(sample(label), wanted)
    assert torch.equal(sample("dog"), module.sample(4, Condition(torch.tensor([1] * 4)), num_steps=2))
    assert torch.equal(sample(1), sample(torch.tensor(1)))
    assert torch.equal(sample("random"), sample(SeededImages(module, label="random").labels(range(4))))
    part = module.sample([2, 3], label=[2, 0, 1], num_steps=2)  # the class of a seed does not depend on the batch
    torch.testing.assert_close(part, sample([2, 0, 1])[2:], rtol=0, atol=1e-5)


def test_a_sampler_is_an_object_a_class_or_a_name_with_a_number_of_steps(module: DiffusionModule) -> None:
    wanted = module.sample(2, sampler=DPMSolver(module.process, num_steps=3))
    for sampler in (DPMSolver, "dpm_solver", "DPMSolver", DPMSolver(module.process, num_steps=9)):
        assert torch.equal(module.sample(2, sampler=sampler, num_steps=3), wanted)
    assert not torch.equal(module.sample(2, sampler=Euler, num_steps=3), wanted)
    assert torch.equal(module.sample(2, num_steps=4), module.sample(2, sampler=DDIM(module.process, num_steps=4)))


def test_a_module_takes_the_same_forms_of_a_sampler_as_its_method_sample(module: DiffusionModule) -> None:
    assert isinstance(DiffusionModule(module.network, module.process, sampler="heun").sampler, Heun)
    assert DiffusionModule(module.network, module.process, sampler=DPMSolver).sampler == DPMSolver(module.process)
    with pytest.raises(ValueError, match=r"must have the process of the module \(CosineSchedule.* LinearSchedule"):
        DiffusionModule(module.network, CosineSchedule(20), sampler=module.sampler)


def test_a_sampler_that_is_given_by_name_keeps_the_time_grid_and_the_clipping(module: DiffusionModule) -> None:
    own = DDIM(module.process, num_steps=4, time_grid=TrailingTimes(), clipping=NoClipping())
    module = DiffusionModule(module.network, module.process, sampler=own)
    wanted = Heun(module.process, num_steps=5, time_grid=TrailingTimes(), clipping=NoClipping())
    assert torch.equal(module.sample(2, sampler="heun", num_steps=5), module.sample(2, sampler=wanted))


def test_clipping_and_time_grid_of_one_call_replace_those_of_the_sampler(module: DiffusionModule) -> None:
    parts: dict[str, Any] = {"clipping": NoClipping(), "time_grid": TrailingTimes()}
    for sampler, build in (("heun", Heun), (None, DDIM), (DPMSolver(module.process), DPMSolver)):
        wanted = module.sample(2, sampler=build(module.process, num_steps=3, **parts))
        assert torch.equal(module.sample(2, sampler=sampler, num_steps=3, **parts), wanted)
    with pytest.raises(ValueError, match=r"`clipping` must be a diffusion_lab.Clipping, got the class NoClipping"):
        module.sample(2, clipping=NoClipping)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted(p for group in GROUPS for p in (CONF / group).glob("*.yaml")), ids=str)
def test_the_names_of_the_configs_select_the_same_classes_in_python(path: Path, module: DiffusionModule) -> None:
    kind = re.findall(r"^_target_: diffusion_lab.samplers.(\w+)$", path.read_text(), re.MULTILINE)[0]
    given: dict[str, Any] = {path.parent.name: path.stem}
    if path.stem == "sections":  # its sections have no default
        with pytest.raises(ValueError, match=r"`time_grid` must be SectionTimes\(counts\), .*, got the name sections"):
            module.sample(2, **given)
        return
    chosen = as_sampler(given.pop("sampler", None), module.sampler, module.process, num_steps=2, **given)
    assert type(getattr(chosen, path.parent.name, chosen)).__name__ == kind


def test_settings_of_a_sampler_are_given_to_the_sampler(module: DiffusionModule) -> None:
    with pytest.raises(TypeError, match=r"`eta` is not an .*, got 0.5; .*: sampler=DDIM\(module.process, eta=0.5\)"):
        module.sample(2, eta=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`gidance` is not an argument of sample, .* you mean guidance\."):
        module.sample(2, gidance=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`time_grid` must be a time grid or its name \(DDIMTimes, .*, got karas"):
        module.sample(2, time_grid="karas")


def test_guidance_takes_numbers_and_modules(module: DiffusionModule) -> None:
    weaker = small_module(labels=Labels(3, dropout=0.1))
    assert Guidance(2.0) == Guidance(Strength(2.0))  # type: ignore[arg-type]
    guided = module.sample(2, guidance=Guidance(2.0, guide=weaker), num_steps=2)  # type: ignore[arg-type]
    wanted = module.sample(2, guidance=Guidance(Strength(2.0), guide=weaker.denoiser()), num_steps=2)
    assert torch.equal(guided, wanted)
    with pytest.raises(
        ValueError, match=r"`guide` must be a diffusion_lab.Denoiser, got 'run'; build it with Denoiser"
    ):
        Guidance(2.0, guide="run")  # type: ignore[arg-type]


def test_a_sampler_may_have_an_equal_process_its_continuous_extension_or_fewer_steps(module: DiffusionModule) -> None:
    schedule = CosineSchedule(1000)
    module = DiffusionModule(module.network, schedule)
    for other in (CosineSchedule(1000), schedule.continuous, CosineSchedule(100)):
        sampler = DDIM(GaussianProcess(other), time_grid=TrailingTimes(), num_steps=4)
        expected = DDIM(module.process, time_grid=TrailingTimes(), num_steps=4)
        images, wanted = (module.sample(2, sampler=one) for one in (sampler, expected))
        torch.testing.assert_close(images, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "`seeds` must be a number of at least 1 or a list of seeds, got 0"),
        ({"seeds": [3, -1]}, r"`seeds` must be a list of whole numbers of at least 0, or their number, got \[3, -1\]"),
        ({"seeds": 1.5}, "`seeds` must be a list of whole numbers of at least 0, or their number, got 1.5"),
        ({"seeds": torch.zeros(2, 1, 8, 8)}, r"number, got a tensor \[2, 1, 8, 8\]; noise is given to a sampler"),
        ({"guidance": "strong"}, "`guidance` must be a guidance scale, such as 2.0, or a .*Guidance, got 'strong'"),
        ({"label": 3}, r"`label` must be None, random, in 0\.\.2 or a list of such numbers, got 3"),
        ({"label": []}, r"`label` must be None, random, in 0\.\.2 or a list of such numbers, got \[\]"),
        ({"label": True}, r"`label` must be None, random, in 0\.\.2 or a list of such numbers, got True"),
        ({"label": torch.tensor([0.0, 1.0])}, r"`label` must be None, random, in 0\.\.2 or a list .*, got tensor"),
        ({"label": "shp"}, "`label` must be the name or the number of a class .0 cat, 1 dog, 2 Ship, boat., got shp"),
        (
            {"sampler": "ddmi"},
            r"`sampler` must be a sampler, its class or its name \(DDIM, .*\), got ddmi; perhaps you mean DDIM",
        ),
        ({"sampler": "unicp"}, "got unicp; perhaps you mean UniPC"),
        ({"guidance": 2.0, "guidance_scale": 3.0}, "`guidance_scale` must be None if `guidance` is given, got 3.0"),
        ({"num_steps": 2.5}, "num_steps must be a whole number of at least 1, got 2.5"),
        (
            {"sampler": DDIM(GaussianProcess(CosineSchedule(20)), num_steps=4)},
            r"`sampler` must have the process of the module \(LinearSchedule.*, got a sampler with CosineSchedule",
        ),
        ({"sampler": object()}, "`sampler` must be a diffusion_lab.Sampler that defines sample"),
        ({"num_steps": 21}, "num_steps must be at most the schedule's 20 steps, got 21"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_with_what_is_accepted(
    arguments: dict[str, Any], message: str, module: DiffusionModule
) -> None:
    with pytest.raises(ValueError, match=message):
        module.sample(**{"seeds": 2, **arguments})


def test_an_unconditional_network_takes_no_label() -> None:
    with pytest.raises(ValueError, match="`label` must be None for a network that was trained without classes, got 1"):
        small_module().sample(2, label=1)
