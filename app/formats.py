"""Which files are images by their names: those that are read, and those that are refused with advice."""

SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")
DICOM_SUFFIXES = (".dcm", ".ima")  # the usual ones; files of any name are known by their content

_TWO_FILES = "one part of an image in two files: convert it to one .nii.gz file"
# These are cases that fail: a scan must not be passed over in silence.
REFUSED = {
    **dict.fromkeys((".hdr", ".img", ".hdr.gz", ".img.gz", ".mhd", ".nhdr"), _TWO_FILES),
    ".zip": "a zip archive: unpack it, and give the folder that comes out",
}
