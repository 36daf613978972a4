import pytest
import torch

from diffusion_lab.networks import Condition, Labels

LABEL = torch.tensor([0, 2, 1, 2, 0])
DROPPED = torch.tensor([False, True, False, False, True])


def test_dropped_labels_become_the_null_label_and_the_others_stay() -> None:
    labels = Labels(num_classes=3, dropout=0.1)
    dropped = labels.drop(LABEL, DROPPED)
    assert dropped is not None
    assert dropped.tolist() == [0, 3, 1, 2, 3]
    assert LABEL.tolist() == [0, 2, 1, 2, 0]


def test_labels_stay_where_none_are_ever_dropped() -> None:
    assert Labels(num_classes=3).drop(LABEL, DROPPED) is LABEL


@pytest.mark.parametrize("label", [LABEL, None])
def test_an_unconditional_network_is_told_no_label(label: torch.Tensor | None) -> None:
    assert Labels().drop(label, DROPPED) is None


def test_the_null_label_has_a_row_only_where_labels_are_dropped() -> None:
    assert [labels.num_rows for labels in (Labels(), Labels(3), Labels(3, dropout=0.1))] == [0, 3, 4]
    assert Labels(3, dropout=0.1).null == 3


@pytest.mark.parametrize("labels", [Labels(), Labels(3)])
def test_asking_for_a_null_label_that_does_not_exist_is_refused(labels: Labels) -> None:
    with pytest.raises(ValueError, match=r"guidance requires a network .* conditioning.dropout above 0"):
        _ = labels.null


def test_two_conditions_become_one_batch() -> None:
    both = Condition.cat(Condition(LABEL), Condition(torch.tensor([3, 3])))
    assert both.label is not None
    assert both.label.tolist() == [0, 2, 1, 2, 0, 3, 3]
    assert Condition.cat(Condition(), Condition()).label is None


def test_the_condition_of_some_images_is_theirs_in_the_order_asked_for() -> None:
    some = Condition(LABEL).select(torch.tensor([3, 2, 2, 0]))
    assert some.label is not None
    assert some.label.dtype == torch.int64
    assert some.label.tolist() == [2, 1, 1, 0]
    assert Condition().select(torch.tensor([3, 2])).label is None


def test_what_was_done_to_the_images_stays_with_them() -> None:
    done = torch.arange(10.0).view(5, 2)
    some = Condition(LABEL, done).select(torch.tensor([3, 0])).augmentation
    assert some is not None
    assert some.tolist() == [[6, 7], [0, 1]]
    both = Condition.cat(Condition(None, done), Condition(None, -done)).augmentation
    assert both is not None
    assert torch.equal(both, torch.cat([done, -done]))


@pytest.mark.parametrize("name", ["label", "augmentation"])
def test_a_part_that_one_condition_alone_has_is_not_lost(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be given in both conditions or in neither, got it in only one"):
        Condition.cat(Condition(**{name: LABEL}), Condition())


@pytest.mark.parametrize(
    ("num_classes", "dropout", "message"),
    [
        (-1, 0.0, "num_classes must be at least 0, got -1"),
        (3, 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        (3, -0.1, r"dropout must be in \[0, 1\), got -0.1"),
        (0, 0.1, "dropout must be 0 if num_classes is 0, got 0.1"),
    ],
)
def test_labels_out_of_range_are_refused(num_classes: int, dropout: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Labels(num_classes, dropout)
