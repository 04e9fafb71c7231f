"""The method as one would write it on a first day: what app/ is compared with. `python -m benchmarks.naive CT MASK`.

Same network, weights and threads; but the volume as float32, the network in float32 with its batch norm, eager,
one slice at a time, regions label by label and slice by slice, SimpleITK in and out. It is also an oracle of app/:
only the network and the paper's constants are shared. Not here: resampling and framing, which are ours (scans within
the weights' spacing range and of their frame's size or larger go in as they are), so sides must be multiples of 16.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.options import WEIGHTS


def segment_file(ct: Path, mask: Path, weights: Path, device: str = "cpu") -> dict:
    """Segment one CT and write its mask.

    Returns:
        Seconds per stage, torch's threads, and on CUDA the largest memory that torch reserved, in MiB.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start_s

    with stage("start-up"):
        import numpy as np
        import SimpleITK as sitk
        import torch
        from scipy import ndimage

        from app.labels import NUM_CLASSES
        from app.network import DeepLabV3Plus
        from app.postprocess import FOREGROUND_BIAS, MIN_PIECE_SHARE, MIN_REGION_PX
        from app.preprocess import WINDOW_HU

        network = DeepLabV3Plus()
        network.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
        network.eval().to(device)
    with stage("read"):
        image = sitk.ReadImage(str(ct))
        orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        image = sitk.DICOMOrient(image, "RAS")
        volume = sitk.GetArrayFromImage(image).astype(np.float32)
    with stage("preprocess"):
        volume = np.clip(volume, *WINDOW_HU)
        volume = (volume - volume.mean()) / volume.std()
    with stage("segment"), torch.inference_mode():
        labels = np.zeros(volume.shape, np.uint8)
        for z, pixels in enumerate(volume):
            logits = network(torch.from_numpy(pixels)[None, None].to(device))[0]
            logits[1:] += FOREGROUND_BIAS
            labels[z] = logits.argmax(0).cpu().numpy()
    with stage("postprocess"):
        for label in range(1, NUM_CLASSES):
            for pixels in labels:
                regions, count = ndimage.label(pixels == label, np.ones((3, 3)))
                sizes = ndimage.sum(pixels == label, regions, range(1, count + 1))
                for region, size in enumerate(sizes, start=1):
                    if size < MIN_REGION_PX:
                        pixels[regions == region] = 0
            pieces, count = ndimage.label(labels == label, np.ones((3, 3, 3)))
            sizes = ndimage.sum(labels == label, pieces, range(1, count + 1))
            for piece, size in enumerate(sizes, start=1):
                if size < MIN_PIECE_SHARE * sizes.max():
                    labels[pieces == piece] = 0
    with stage("write"):
        result = sitk.GetImageFromArray(labels)
        result.CopyInformation(image)
        sitk.WriteImage(sitk.DICOMOrient(result, orientation), str(mask), useCompression=True)
    return {
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "torch_reserved_mib": torch.cuda.max_memory_reserved() / 2**20 if device == "cuda" else None,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive", description=__doc__.splitlines()[0])
    parser.add_argument("ct", type=Path, help="input file")
    parser.add_argument("mask", type=Path, help="output file, .nii.gz")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="(default: the shipped ones)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    print(json.dumps(segment_file(options.ct, options.mask, options.weights, options.device)))


if __name__ == "__main__":
    main()
