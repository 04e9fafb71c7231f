"""All three, one after the other: `python -m benchmarks [--device cuda]`."""

import argparse
import subprocess
import sys


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", default="2", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    # A process each: what one leaves on the card, the next would count.
    for name in ("cold_case", "scaling", "network"):
        command = [sys.executable, "-m", f"benchmarks.{name}", "--device", options.device, "--threads", options.threads]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
