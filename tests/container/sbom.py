"""What an image contains, as a CycloneDX 1.6 bill of materials: `python -m tests.container.sbom team > sbom.cdx.json`.

Python's packages are listed by cyclonedx-py from the metadata in the image, with their licences and dependencies;
Debian's are added as its own database has them. Needs a Docker engine; nothing but `tar` and `dpkg-query` is run in
the image.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from packageurl import PackageURL


def in_image(image: str, command: str) -> bytes:
    """Standard output of a shell command in a container of `image`; CalledProcessError where it fails."""
    line = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", command]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout


def python_document(image: str) -> dict:
    """CycloneDX document of the packages in the image's virtual environment."""
    metadata = in_image(image, "cd /opt/venv/lib/python3*/site-packages && tar -c *.dist-info")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder)  # cyclonedx-py reads an environment: one with the image's metadata and nothing else
        (packages,) = Path(folder).glob("lib/python3*/site-packages")
        with tarfile.open(fileobj=io.BytesIO(metadata)) as archive:
            archive.extractall(packages, filter="data")
        line = [sys.executable, "-m", "cyclonedx_py", "environment", "--spec-version", "1.6", folder]
        return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)


def debian_component(name: str, version: str, architecture: str) -> dict:
    """CycloneDX component of one installed Debian package."""
    purl = PackageURL("deb", "debian", name, version, {"arch": architecture}).to_string()
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill_of_materials(image: str) -> dict:
    """CycloneDX document of the image: what it is, its Python packages, its Debian packages."""
    document = python_document(image)
    installed = in_image(image, r"dpkg-query -W -f '${Package} ${Version} ${Architecture}\n'").decode()
    document["components"] += [debian_component(*line.split()) for line in installed.splitlines()]
    identity = subprocess.run(["docker", "inspect", "-f", "{{.Id}}", image], check=True, capture_output=True, text=True)
    document["metadata"]["component"] = {"type": "container", "name": image, "version": identity.stdout.strip()}
    return document


if __name__ == "__main__":
    (image,) = sys.argv[1:]
    json.dump(bill_of_materials(image), sys.stdout, indent=2)
