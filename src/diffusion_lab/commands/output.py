"""Output streams of a command: they outlive their reader, such as `| head`, and write no control characters of names.

See `reporting.text` for the second. It is done here because all text of a command passes through these two streams:
printed text, log messages, tracebacks, and messages of other libraries.
"""

import errno
import io
import os
import sys

from diffusion_lab.reporting.text import EscapedStream

NOBODY_READS = (errno.EPIPE, errno.EIO)
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Output(io.FileIO):
    """A file descriptor whose write errors have no effect on the command."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno in NOBODY_READS:  # the next writes, also of other libraries, must succeed
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            elif error.errno not in DISK_IS_FULL:
                raise
            return memoryview(data).nbytes  # type: ignore[arg-type]


def outlive_reader() -> None:
    r"""Let writes to stdout and stderr succeed if nobody reads them any more, or if the disk of their file is full.

    Characters that the encoding lacks, and control characters in names, are written as escape sequences such as \x1b.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # closed, or replaced by a test or a notebook
        stream.flush()
        file = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
        lines = stream.line_buffering or name == "stderr"
        text = io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=lines)
        setattr(sys, name, EscapedStream(text))
