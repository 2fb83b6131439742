import json
from pathlib import Path

import pytest

from segformerpp.data.boxes import read_boxes
from segformerpp.errors import UsageError
from tests.data.test_poses import make_people


def test_coco(tmp_path: Path) -> None:
    make_people(tmp_path, "train", 3)
    file = tmp_path / "annotations/person_keypoints_train.json"
    data = json.loads(file.read_text())
    data["annotations"][1]["image_id"] = 0
    data["annotations"][2]["iscrowd"] = 1
    file.write_text(json.dumps(data))
    box = [5.0, 5.0, 40.0, 50.0]
    assert read_boxes(file) == {"0.png": [box, box], "1.png": [], "2.png": []}


def test_text(tmp_path: Path) -> None:
    file = tmp_path / "boxes.txt"
    file.write_text("# people\n\nfolder/a b.jpg 1 2 3 4\na b.jpg, 5, 6, 7.5, 8\nc.png 0,0,1,1\n")
    assert read_boxes(file) == {"a b.jpg": [[1, 2, 3, 4], [5, 6, 7.5, 8]], "c.png": [[0, 0, 1, 1]]}


@pytest.mark.parametrize(
    "line", ["a.jpg 1 2 3", "a.jpg 1 2 0 4", "a.jpg 1 2 x 4", "1 2 3 4", "a.jpg 1 nan 2 3"]
)
def test_lines_that_are_none(tmp_path: Path, line: str) -> None:
    file = tmp_path / "boxes.txt"
    file.write_text(f"ok.jpg 1 2 3 4\n{line}\n")
    with pytest.raises(UsageError, match=r"^boxes: line 2 of .*boxes\.txt: "):
        read_boxes(file)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_boxes(tmp_path / "gone.txt")
    (tmp_path / "a.json").write_text('{"images": [{}], "annotations": []}')
    with pytest.raises(UsageError, match="no JSON of COCO"):
        read_boxes(tmp_path / "a.json")
