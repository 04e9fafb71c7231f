"""Slices a second through the network alone: `python -m benchmarks.network`.

By dtype, batch, memory format and form (see FORMS), timed by torch.utils.benchmark (median of as many passes as fit
the time), in TFLOP/s beside what a large matrix product reaches in the same process and dtype.
"""

import argparse
import itertools

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from app.fuse import fold_batch_norm
from app.network import DeepLabV3Plus
from app.weights import Weights, load_weights
from benchmarks import machine

MATRIX = {"cpu": 4096, "cuda": 16384}  # rows and columns: large enough that more does not help
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
AS_APP = "as app/ runs it"  # the only form in int8
FORMS = {  # how the network is called, in which memory formats
    "as trained": ("net(images)", ("NCHW", "NHWC")),
    "batch norm folded": ("net(images)", ("NCHW", "NHWC")),
    AS_APP: ("net.quarter_logits(images)", ("NHWC",)),
}


def slice_gflop(size_px: int) -> float:
    """Multiplications and additions of one slice, in 10^9, as torch counts them (convolutions only)."""
    with torch.device("meta"):
        network, image = DeepLabV3Plus().eval(), torch.empty(1, 1, size_px, size_px)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() / 1e9


def seconds(statement: str, names: dict, threads: int, min_time_s: float) -> float:
    """Median seconds of a statement; on CUDA the timer waits for the card."""
    return Timer(statement, globals=names, num_threads=threads).blocked_autorange(min_run_time=min_time_s).median


def matmul_tflops(device: str, dtype: torch.dtype, options: argparse.Namespace) -> float:
    """What a square matrix product reaches."""
    n = options.matrix or MATRIX[device]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2e-12 * n**3 / seconds("a @ b", {"a": a, "b": b}, options.threads, options.min_time_s)


def network(
    weights: Weights, form: str, device: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> nn.Module:
    """The trained network in a form, in evaluation mode."""
    if form == AS_APP:
        return weights.network(torch.device(device), dtype)
    network = DeepLabV3Plus().eval()
    network.load_state_dict(weights.state)
    if form == "batch norm folded":
        fold_batch_norm(network)
    return network.to(device, dtype, memory_format=memory_format)  # type: ignore[call-overload]  # torch's gap


def main(arguments: list[str] | None = None) -> None:
    parser = machine.parser("network", __doc__)
    add = parser.add_argument
    add(
        "--batches",
        type=machine.count,
        nargs="+",
        default=[1, 2, 4, 8],
        metavar="N",
        help="slices a pass (default: 1 2 4 8)",
    )
    add("--size", type=machine.count, default=512, metavar="PX", help="side of a slice (default: %(default)s)")
    add("--min-time-s", type=machine.amount, default=0.5, help="of each measurement (default: %(default)s)")
    add("--matrix", type=machine.count, metavar="N", help="side of the matrix product (default: 4096; on CUDA 16384)")
    options = parser.parse_args(arguments)
    # cuDNN's float32 convolutions are TF32 by default: the product they are held against has to be, too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    device, gflop = options.device, slice_gflop(options.size)
    weights = load_weights(options.weights)
    peak_tflops, measurements = {}, []
    with torch.inference_mode():
        for dtype in machine.dtypes(device):
            name = "TF32" if dtype == torch.float32 and device == "cuda" else str(dtype).removeprefix("torch.")
            int8 = dtype == torch.int8
            if not int8:  # torch has no product of such matrices to hold it against
                peak_tflops[name] = matmul_tflops(device, dtype, options)
            for form in [AS_APP] if int8 else FORMS:
                statement, layouts = FORMS[form]
                for layout, batch in itertools.product(layouts, options.batches):
                    net = network(weights, form, device, dtype, FORMATS[layout])
                    images = torch.randn(batch, 1, options.size, options.size, device=device)
                    images = images.to(next(net.parameters()).dtype, memory_format=FORMATS[layout])
                    names = {"net": net, "images": images}
                    slices_per_s = batch / seconds(statement, names, options.threads, options.min_time_s)
                    share = None if int8 else slices_per_s * gflop / 1e3 / peak_tflops[name]
                    measurements.append(
                        {"dtype": name, "form": form, "format": layout, "batch": batch}
                        | {"slices_per_s": slices_per_s, "peak_share": share}
                    )
                    print(f"{name:9} {form:17} {layout} x{batch}: {slices_per_s:8.2f} slices/s", flush=True)
    result = {
        "slice_px": options.size,
        "slice_gflop": gflop,
        "matmul_tflops": peak_tflops,
        "measurements": measurements,
    }
    machine.save("network", options, result)


if __name__ == "__main__":
    main()
