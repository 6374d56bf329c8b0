"""Image folders."""

import pytest
from training import write_data

from mixerzoo.data.folder import EVAL_SPLITS, open_folder
from mixerzoo.errors import DataError


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: None, "has no folder named train"),
        (lambda p: (p / "train").mkdir(), "has no images"),
        (lambda p: (p / "train" / "cat").mkdir(parents=True), "has no images"),
    ],
)
def test_folders_without_data(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path, ("train",), lambda image: image)


def test_classes_must_agree(tmp_path):
    folder = write_data(tmp_path)
    with pytest.raises(DataError, match=r"blue, red.*expected"):
        open_folder(folder, EVAL_SPLITS, lambda image: image, ["red", "blue"])
