"""Image folders."""

import pytest
from training import write_data

from mixerzoo.data.folder import EVAL_SPLITS, open_folder
from mixerzoo.errors import DataError


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: None, "has no folder named train"),
        (lambda p: p.rmdir(), "There is no folder"),
        (lambda p: (p / "train").mkdir(), r"no class folders: expected images at .*train/<class>"),
        (lambda p: (p / "train" / "cat").mkdir(parents=True), r"class folders without images \(cat\)"),
    ],
)
def test_folders_without_data(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path, ("train",), lambda image: image)


def test_classes_must_agree(tmp_path):
    folder = write_data(tmp_path)
    for expected, difference in (
        (["red", "blue"], "the order differs"),
        (["blue", "green", "red"], "green is missing"),
        (["blue"], "red is not expected"),
        (["blue", "cyan", "green"], "cyan, green are missing, red is not expected"),
    ):
        with pytest.raises(DataError, match=rf"not those expected: {difference}\.$"):
            open_folder(folder, EVAL_SPLITS, lambda image: image, expected)
