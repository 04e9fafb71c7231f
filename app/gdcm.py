"""Decode compressed DICOM pixels with SimpleITK's GDCM, in a process of its own.

Its codecs are C: damaged streams have made them crash, take all memory, or never end. In a process of their own that
ends one series, not the run. Both processes run this file: the parent uses `Decoder`, the child `_serve`.
"""

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, cast

import numpy as np

_LIBRARY_BYTES = 1 << 30  # of address space, for the interpreter and SimpleITK
_SECONDS, _SECONDS_PER_FRAME = 60, 1  # allowed; a frame takes 0.1 s
_FRAMES_IN_MEMORY = 4 * 8  # of one byte a pixel: decoded, rescaled to double, and copies of both


class DecodeError(Exception):
    """Pixels that could not be decoded; the message says how it ended."""


class Decoder:
    """Decodes files one after the other. The process starts with the first; leaving the context ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()

    def decode(self, path: Path, frames: int, pixels: int) -> np.ndarray:
        """Decode one file.

        Args:
            path: The file.
            frames: That its header declares.
            pixels: Of a frame.

        Returns:
            int16 (frame, row, column), rescaled to HU, rounded and saturated; of whatever size the file has.

        Raises:
            DecodeError: GDCM refuses the file, crashes, takes too long or too much memory.
        """
        if self._process is None:
            command = [sys.executable, "-I", __file__]  # nothing of the caller's folder or environment is imported
            pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
            # numpy's BLAS would reserve 40 MB of the limited address space for each CPU.
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment)
        process = self._process
        tasks, answers = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        task = {"path": str(path), "bytes": _LIBRARY_BYTES + _FRAMES_IN_MEMORY * frames * pixels}
        timer = threading.Timer(_SECONDS + _SECONDS_PER_FRAME * frames, process.kill)
        timer.start()
        try:
            tasks.write(json.dumps(task).encode() + b"\n")
            tasks.flush()
            answer = json.loads(answers.readline() or '{"error": "ended without an answer"}')
            if "error" in answer:
                raise DecodeError(answer["error"])
            return np.frombuffer(answers.read(answer["size"]), np.int16).reshape(answer["shape"])
        except (OSError, ValueError):
            raise DecodeError("ended without an answer") from None
        finally:
            timer.cancel()


def _serve() -> None:
    for line in sys.stdin.buffer:
        task = json.loads(line)
        _, highest = resource.getrlimit(resource.RLIMIT_AS)
        limit = task["bytes"] if highest == resource.RLIM_INFINITY else min(task["bytes"], highest)
        resource.setrlimit(resource.RLIMIT_AS, (limit, highest))
        try:
            volume = _decoded(task["path"])
            answer = {"shape": volume.shape, "size": volume.nbytes}
        except (RuntimeError, ValueError, MemoryError, OSError):
            volume, answer = None, {"error": "refused"}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        if volume is not None:
            sys.stdout.buffer.write(volume.data)
        sys.stdout.buffer.flush()


def _decoded(path: str) -> np.ndarray:
    """The planes of a file, as `Decoder.decode` gives them."""
    import SimpleITK as sitk  # under the limit

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with open(path, "rb") as file:  # by number: SimpleITK takes no name that is not UTF-8
        reader.SetFileName(f"/proc/self/fd/{file.fileno()}")
        values = sitk.GetArrayFromImage(reader.Execute())
    volume = np.empty(values.shape, np.int16)
    for plane, hu in zip(volume, values, strict=True):  # one by one, for the copies' sake
        plane[...] = np.clip(np.rint(hu), -(2**15), 2**15 - 1)
    return volume


if __name__ == "__main__":
    _serve()
    os._exit(0)
