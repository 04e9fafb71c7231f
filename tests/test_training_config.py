"""The command line of a training run, and settings that come from files."""

from pathlib import Path

import pytest

from training.config import parse

TRAINING = Path(__file__).parents[1] / "training"


@pytest.mark.parametrize("path", sorted(TRAINING.glob("*.args")), ids=lambda path: path.name)
def test_a_files_settings_are_those_of_its_flags(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert parse([f"@{path}"]) == parse(" ".join(lines).split()) != parse([])


def test_a_later_flag_overrides_a_file_and_a_comment_is_none(tmp_path):
    (tmp_path / "my.args").write_text("# lr 5\n--lr 0.5 --zoom 1.2 # as patients differ\n\n--lambda 0.1\n")
    settings = parse([f"@{tmp_path}/my.args", "--lr", "0.25"])
    assert (settings.lr, settings.zoom, settings.lambda_) == (0.25, 1.2, 0.1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--drawn-organs", "4,spine"], "drawn_organs: no organ 'spine'; there are 1 to 13: Liver"),
        (["--lambda-warmup-share", "1.5"], "lambda_warmup_share must be in 0..1, got 1.5"),
        (["@no.args"], "No such file or directory: 'no.args'"),
    ],
)
def test_what_cannot_be_used_is_an_error_of_the_command_line(flags, message, capsys):
    with pytest.raises(SystemExit) as status:
        parse(flags)
    assert status.value.code == 2 and message in capsys.readouterr().err
