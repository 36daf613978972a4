"""Lightning callbacks that control when training generates images, measures metrics and saves checkpoints.

The operations themselves are implemented in other packages, such as `generation` and `evaluation`.
"""

from diffusion_lab.callbacks.checkpoints import SaveLast, WholeCheckpoints
from diffusion_lab.callbacks.measure_accuracy import MeasureAccuracy
from diffusion_lab.callbacks.measure_distance import MeasureDistance
from diffusion_lab.callbacks.progress import Progress
from diffusion_lab.callbacks.restore_on_divergence import RestoreOnDivergence
from diffusion_lab.callbacks.sample_images import SampleImages
from diffusion_lab.callbacks.save_averages import SaveAverages
from diffusion_lab.callbacks.stop_on_signal import StopOnSignal
from diffusion_lab.callbacks.throughput import Throughput

__all__ = [
    "MeasureAccuracy",
    "MeasureDistance",
    "Progress",
    "RestoreOnDivergence",
    "SampleImages",
    "SaveAverages",
    "SaveLast",
    "StopOnSignal",
    "Throughput",
    "WholeCheckpoints",
]
