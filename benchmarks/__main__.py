"""All three, one after the other: `python -m benchmarks [--device cuda]`."""

import argparse

from benchmarks import cold_case, network, scaling


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", default="2", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    # Measured first, written down last: to name the card opens it, and this process then has memory on it.
    for benchmark in (cold_case, scaling, network):
        benchmark.main(["--device", options.device, "--threads", options.threads])


if __name__ == "__main__":
    main()
