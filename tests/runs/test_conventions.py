"""Fingerprints tell apart runs with the conventions of the papers' code and runs of earlier versions."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from diffusion_lab.fingerprints import differences
from diffusion_lab.generation.seeded_images import SeededImages
from diffusion_lab.guidance import Guidance, Strength
from diffusion_lab.paths import CONF
from diffusion_lab.runs.load import build_untrained_module, load_config, resolve

STORED = Path(__file__).parents[1] / "earlier_runs" / "v0_3"
SMALL = [
    "run_folder=somewhere", "data=fashion_mini", "model=unet_ddpmpp", "augmentation=edm", "conditioning=label",
    "schedule=edm", "model.channels=32", "model.channel_multipliers=[1]", "model.num_blocks=1",
    "model.attention_resolutions=[]",
]  # fmt: skip
EARLIER = [
    "model.blocks.norm_eps=1.0e-5", "model.sinusoids.add_label=false", "augmentation.anisotropy_direction=clockwise",
]  # fmt: skip
OF_PAPERS = {"norm_eps": 1e-6, "add_label": True, "anisotropy_direction": "counterclockwise"}


def module(*overrides: str) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build_untrained_module(resolve(compose("train", overrides=[*SMALL, *overrides])))


def protocol(built: Any, **settings: Any) -> dict[str, Any]:
    return SeededImages(built, batch_size=8, **settings).protocol()


def test_the_network_and_the_augmentation_of_a_run_enter_the_fingerprint_unless_they_are_those_of_0_3() -> None:
    of_papers, earlier = protocol(module()), protocol(module(*EARLIER))
    assert of_papers["conventions"] == OF_PAPERS
    assert differences([earlier, of_papers]) == {
        f"conventions.{name}": ["missing", value] for name, value in OF_PAPERS.items()
    }


@pytest.mark.parametrize("setting", EARLIER)
def test_a_single_setting_is_marked(setting: str) -> None:
    name = setting.partition("=")[0].rpartition(".")[2]
    found = differences([protocol(module()), protocol(module(setting))])
    assert found == {f"conventions.{name}": [OF_PAPERS[name], "missing"]}


def test_the_network_of_a_guide_has_its_conventions_in_the_fingerprint() -> None:
    of_papers, earlier = module(), module(*EARLIER)
    guided = protocol(earlier, guidance=Guidance(Strength(2.0), of_papers))
    assert guided["guide"]["conventions"] == {"norm_eps": 1e-6, "add_label": True}
    assert "conventions" not in protocol(of_papers, guidance=Guidance(Strength(2.0), earlier))["guide"]


def test_a_run_of_0_3_with_edms_augmentation_has_no_conventions() -> None:
    built = build_untrained_module(load_config(STORED / "edm"))
    assert built.augmentation is not None
    assert built.augmentation.anisotropy_direction == "clockwise"
    assert built.conventions() == {}
    assert "conventions" not in protocol(built)
