"""What `--organs` takes: lists, and tables as they come from people, spreadsheets and data sets."""

import argparse
import os

import pytest

from evaluation.organs import ALL_LABELS, annotated_organs, parse_organs


@pytest.mark.parametrize(
    ("text", "labels"),
    [("1-13", ALL_LABELS), ("1-11,13", (*range(1, 12), 13)), ("5", (5,)), ("13,1", (1, 13)),
     ("1-3, lk,Right Adrenal Gland", (1, 2, 3, 7, 13))],
)  # fmt: skip
def test_organs_by_number_abbreviation_and_name(text, labels):
    assert parse_organs(text) == labels
    assert annotated_organs(text).of("any.nii.gz") == labels


@pytest.mark.parametrize("text", ["0-3", "14", "", "a", "3-1", "1,,2", "-3", "Liver,Colon"])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no organ '"):
        parse_organs(text)


@pytest.mark.parametrize(
    "content",
    [
        b"case\tannotated\na\t1-11,13\nb\tLiver\n\nnone\t\n",
        b"image\tsource\tannotated\tpresent\nCT/a_0000.nii.gz\tx\t1-11,13\t1\nCT/b.nii.gz\tx\tLiver\t\nCT/none.nii.gz\n",
        b'\xef\xbb\xbfcase\tannotated\r\na.nii.gz\t"1-11,13"\r\nb\t1\r\n',  # a spreadsheet's
        b"case\tannotated\na\t1-11,13\nb\t1\nlow/a_0000.nii.gz\t1-11,LK\n",  # twice, but equal
    ],
)
def test_tables(tmp_path, content):
    (tmp_path / "organs.tsv").write_bytes(content)
    organs = annotated_organs(str(tmp_path / "organs.tsv"))
    assert organs.of("a.nii.gz") == organs.of("a") == (*range(1, 12), 13) and organs.of("b.nii.gz") == (1,)
    assert organs.of("none.nii.gz") is organs.of("c.nii.gz") is None


def test_a_case_name_that_is_no_text_is_found(tmp_path):
    (tmp_path / "organs.tsv").write_bytes("case\tannotated\n肝\t1\n".encode("gbk"))
    assert annotated_organs(str(tmp_path / "organs.tsv")).of(os.fsdecode("肝.nii.gz".encode("gbk"))) == (1,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "organs.tsv, line 0: no column 'annotated'"),
        ("a\t1-13\n", "organs.tsv, line 1: no column 'annotated'"),
        ("case\tannotated\na\t1-13\nb\t1-14\n", "organs.tsv, line 3: no organ '1-14'"),
        ("case\tannotated\na\t1\nb\t1\na.nii.gz\t2\n", "organs.tsv, line 4: other organs of 'a' than an earlier line"),
        (None, "organs.tsv: cannot be read .*No such file"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, content, message):
    if content is not None:
        (tmp_path / "organs.tsv").write_text(content)
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        annotated_organs(str(tmp_path / "organs.tsv"))
