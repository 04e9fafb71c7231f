"""Which files are images by their names: those that are read, and those that are refused with advice."""

SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")
DICOM_SUFFIXES = (".dcm", ".ima")  # usual; DICOM is known by its content too, whatever it is called

_TWO_FILES = "one part of an image in two files: convert it to one .nii.gz file"
# Better a failed case than a scan that is passed over in silence.
REFUSED = {
    **dict.fromkeys((".hdr", ".img", ".hdr.gz", ".img.gz", ".mhd", ".nhdr"), _TWO_FILES),
    ".zip": "a zip archive: unpack it, and give the folder that comes out",
}
