"""How many samples look like data, and how much of the data samples look like."""

from dataclasses import dataclass

from diffusion_lab.metrics.feature_set import FeatureSet
from diffusion_lab.metrics.metric import Metric


@dataclass(frozen=True)
class PrecisionRecall(Metric):
    """Shares of one set within the balls around the other's features (Kynkäänniemi et al. 2019), by torch-fidelity.

    num_neighbours: a ball reaches to this neighbour within its own set.
    """

    num_neighbours: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_neighbours < 1:
            raise ValueError(f"num_neighbours must be at least 1, got {self.num_neighbours}.")

    @property
    def min_images(self) -> int:
        return self.num_neighbours + 1

    def measure(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        # In pieces: all distances of 50,000 images to 50,000 would take 10 GB, four times over.
        settings = {"prc_neighborhood": self.num_neighbours, "prc_batch_size": 2000, "save_cpu_ram": True}
        generated, real = samples.require_rows(), reference.require_rows()
        least = min(len(generated), len(real))
        if least <= self.num_neighbours:
            raise ValueError(f"both sets must hold more than num_neighbours={self.num_neighbours} images, got {least}.")
        found = prc_features_to_metric(generated, real, verbose=False, **settings)
        return {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL]}
