"""What the model card of a run states."""

from pathlib import Path

from diffusion_lab.runs.card_facts import training_overrides


def test_the_overrides_in_a_card_contain_names_but_no_places_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "overrides.yaml").write_text(
        """
- 'init="/home/somebody/my logs/base"'
- guide=/home/somebody/logs/weak
- classifier=~/logs/classes
- 'callbacks=[a,/home/somebody/b]'
- 'data.path="/home/somebody/pictures"'
- hydra.run.dir=/home/somebody/run
- optimizer.lr=1e-3
- experiment=quickstart
- 'data.classes=[cat/small,dog]'
"""
    )
    assert training_overrides(tmp_path) == [
        "classifier=classes", "data.classes=[cat/small,dog]", "experiment=quickstart", "guide=weak", "init=base",
        "optimizer.lr=1e-3",
    ]  # fmt: skip
