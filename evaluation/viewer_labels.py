"""Names and colours of the organs for 3D Slicer and ITK-SNAP, made from app/labels.py.

`python -m evaluation.viewer_labels` writes both files again; a test says when they are out of date.
"""

from pathlib import Path

from app.labels import ORGANS
from evaluation.output import say, write_text

FOLDER = Path(__file__).parent / "viewers"


def slicer_colour_table() -> str:
    """3D Slicer's colour table: number, name without spaces, red, green, blue, opacity."""
    lines = ["# 3D Slicer: add this file to the scene, then choose it as the colour node of the label map."]
    lines += ["0 background 0 0 0 0"]
    lines += [f"{organ.label} {organ.name.replace(' ', '_')} {_rgb(organ.colour)} 255" for organ in ORGANS]
    return "\n".join(lines) + "\n"


def itk_snap_labels() -> str:
    """ITK-SNAP's label descriptions: number, red, green, blue, opacity, visible, visible in 3D, name."""
    lines = ["# ITK-SnAP Label Description File", "# Segmentation > Import label descriptions"]
    lines += ["# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    lines += ['0 0 0 0 0 0 0 "Clear Label"']
    lines += [f'{organ.label} {_rgb(organ.colour)} 1 1 1 "{organ.name}"' for organ in ORGANS]
    return "\n".join(lines) + "\n"


FILES = {"flare22_slicer.ctbl": slicer_colour_table, "flare22_itksnap.label": itk_snap_labels}


def write_viewer_labels(folder: Path = FOLDER) -> list[Path]:
    """Write both files; returns their paths."""
    paths = []
    for name, make in FILES.items():
        paths.append(folder / name)
        write_text(paths[-1], make())
    return paths


def _rgb(colour: tuple[int, int, int]) -> str:
    return " ".join(map(str, colour))


if __name__ == "__main__":
    for written in write_viewer_labels():
        say(written.name)
