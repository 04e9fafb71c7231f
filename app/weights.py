"""Load one trained branch: check the file, make the network of it, in half precision.

A weights file is what `training.export` writes: plain tensors and numbers, loaded with `weights_only=True`.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch

from app.fuse import fuse
from app.labels import ORGANS
from app.network import OUTPUT_STRIDE, DeepLabV3Plus
from app.preprocess import WINDOW_HU
from app.quantise import quantise

FORMAT = 1
SLICE_MM = 3.0  # of files that do not say. The shipped one does not: half of its training slices were 3 mm thick
CLASSES = ("Background", *(organ.abbreviation for organ in ORGANS))


class WeightsError(Exception):
    """The weights cannot be used; the message names the file and the cause."""


@dataclass(frozen=True)
class Weights:
    """A checked weights file.

    Attributes:
        state: Parameters of DeepLabV3Plus, convolutions in float16, batch norm not yet folded.
        sha256: Of the file.
        frame_px: In-plane size of what training showed the network: slices, or crops of them.
        spacing_mm: (lowest, highest) in-plane spacing seen in training.
        slice_mm: Thickness of slices seen in training, the median.
        switched_off: Label values that no training case annotates; the network never gives them.
    """

    state: dict[str, torch.Tensor]
    sha256: str
    frame_px: int
    spacing_mm: tuple[float, float]
    slice_mm: float
    switched_off: tuple[int, ...]

    def network(self, device: torch.device, dtype: torch.dtype) -> DeepLabV3Plus:
        """The network, fused, in evaluation mode, channels last, on the device; int8: quantised, on a CPU alone."""
        with torch.device("meta"):  # an initialisation would be overwritten, and takes time
            network = DeepLabV3Plus()
        network.load_state_dict({name: value.float() for name, value in self.state.items()}, assign=True)
        if dtype == torch.int8:
            return quantise(network.eval())
        fused = fuse(network.eval(), device)
        return fused.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's gap


def load_weights(path: Path) -> Weights:
    """Read and check a weights file.

    Args:
        path: The file. Where `<path>.sha256` stands beside it, the sums must agree.

    Raises:
        WeightsError: Missing, damaged, changed, or made for other classes or another window.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {error.strerror}") from None
    sha256 = hashlib.sha256(data).hexdigest()
    sum_file = path.with_name(path.name + ".sha256")
    if sum_file.exists():
        expected = (sum_file.read_text(errors="replace").split() or ["nothing"])[0]
        if expected != sha256:
            raise WeightsError(f"{path}: SHA-256 is {sha256}, but {sum_file.name} says {expected}")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        info, state = content["info"], content["state_dict"]
        if content["format"] != FORMAT:
            raise WeightsError(f"{path}: weights of format {content['format']}, this program reads {FORMAT}")
        if tuple(info["classes"]) != CLASSES:
            raise WeightsError(f"{path}: made for other classes: {', '.join(map(str, info['classes']))}")
        if tuple(info["window_hu"]) != WINDOW_HU:
            raise WeightsError(f"{path}: made for the window {info['window_hu']} HU, not {list(WINDOW_HU)}")
        (low, high), frame_px = map(float, info["spacing_mm"]), int(info["frame_px"])
        slice_mm = float(info.get("slice_mm", SLICE_MM))
        if not 0 < low <= high or frame_px <= 0 or frame_px % OUTPUT_STRIDE:
            raise WeightsError(f"{path}: impossible spacing {low} to {high} mm or frame of {frame_px} pixels")
        if not slice_mm > 0:
            raise WeightsError(f"{path}: impossible slice thickness of {slice_mm} mm")
        weights = Weights(state, sha256, frame_px, (low, high), slice_mm, tuple(info["switched_off"]))
        weights.network(torch.device("meta"), torch.float32)  # names and shapes fit
    except WeightsError:
        raise
    except KeyError as error:
        raise WeightsError(f"{path}: not a weights file of this program (it has no {error})") from None
    except Exception as error:  # noqa: BLE001  # a file of any content: pickle, zip and type errors alike
        # Only torch's first sentence: the next ones advise to load the file without `weights_only`.
        cause = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(":")
        raise WeightsError(f"{path}: not a weights file of this program ({cause})") from None
    return weights
