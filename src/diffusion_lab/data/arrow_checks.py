"""Checks of Arrow files, which `datasets` maps into memory as they are.

pyarrow does not check the positions that a file states for its values, and reads other memory for wrong ones. A
compressed file states the memory that it takes, of any size; `datasets` never writes one.
"""

import struct
from pathlib import Path

from diffusion_lab.files.regular import open_regular

DICTIONARY_BATCH, RECORD_BATCH = 2, 3
"""Types of messages in an Arrow stream (Message.fbs of the Arrow format)."""


def require_intact(file: Path) -> None:
    """Raise ValueError unless a file is an uncompressed Arrow stream with valid positions of all values."""
    import pyarrow as pa

    with open_regular(file):  # not a FIFO, which the memory map would wait for
        pass
    try:
        with pa.memory_map(str(file)) as source:
            for message in pa.ipc.MessageReader.open_stream(source):
                if _is_compressed(bytes(message.metadata)):
                    raise ValueError(f"{file} must not be compressed.")
        with pa.memory_map(str(file)) as source:
            for batch in pa.ipc.open_stream(source):
                batch.validate(full=True)
    except (pa.ArrowException, struct.error, IndexError, OSError, StopIteration) as error:
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{file} cannot be read as an Arrow stream, as save_to_disk writes it: {reason}") from None


def _is_compressed(metadata: bytes) -> bool:
    """Return whether the batch that a message announces is compressed.  metadata: flatbuffer of the type Message."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    kind = _field(metadata, message, 1)
    header = _field(metadata, message, 2)
    if kind is None or header is None or metadata[kind] not in (DICTIONARY_BATCH, RECORD_BATCH):
        return False
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    if metadata[kind] == DICTIONARY_BATCH:
        data = _field(metadata, batch, 1)
        if data is None:
            return False
        batch = data + struct.unpack_from("<I", metadata, data)[0]
    return _field(metadata, batch, 3) is not None


def _field(buffer: bytes, table: int, number: int) -> int | None:
    """Return the position of a field of a flatbuffer table, or None if the table does not have the field."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    size = struct.unpack_from("<H", buffer, vtable)[0]
    if 4 + 2 * number >= size:
        return None
    offset = struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None
