"""Videos: MP4 files, which the package imageio-ffmpeg encodes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_lab.files.atomic import atomic_file


def save_video(frames: Sequence[np.ndarray], path: Path, *, fps: float) -> None:
    """Write frames as an MP4 file with H.264.

    frames: images, uint8 [height, width, 3]. Odd sides are extended by one pixel, because H.264 requires even sides.
    """
    from imageio_ffmpeg import write_frames  # type: ignore[import-untyped,import-not-found,unused-ignore]

    height, width = frames[0].shape[:2]
    padding = (0, height % 2), (0, width % 2), (0, 0)
    with atomic_file(path) as partial:
        options = {"codec": "libx264", "quality": 8, "macro_block_size": 1, "output_params": ["-f", "mp4"]}
        writer = write_frames(str(partial), (width + width % 2, height + height % 2), fps=fps, **options)
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(np.pad(frame, padding, mode="edge")))
        writer.close()
