import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformerpp.data.poses import ImageProblem, check_poses, open_poses
from segformerpp.data.skeletons import Skeleton, from_category, read_skeleton, skeleton
from segformerpp.errors import UsageError


def make_people(
    root: Path,
    split: str,
    count: int,
    seed: int = 0,
    names: tuple[str, str] = ("left_hand", "right_hand"),
) -> Path:
    """People with a red hand and a blue hand, on grey, in COCO's JSON."""
    rng = np.random.default_rng(seed)
    folder = root / "images" / split
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    for i in range(count):
        picture = rng.integers(100, 130, (60, 50, 3)).astype(np.uint8)
        points = rng.integers(((8, 8), (30, 8)), ((20, 52), (42, 52)))
        for (x, y), channel in zip(points, (0, 2), strict=True):
            picture[y - 4 : y + 5, x - 4 : x + 5] = 0
            picture[y - 4 : y + 5, x - 4 : x + 5, channel] = 255
        Image.fromarray(picture).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 50, "height": 60})
        keypoints = [*points[0].tolist(), 2, *points[1].tolist(), 2]
        entry = {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 2000.0}
        people.append({**entry, "keypoints": keypoints, "bbox": [5, 5, 40, 50], "num_keypoints": 2})
    category = {"id": 1, "name": "person", "keypoints": list(names)}
    data = {
        "images": images,
        "annotations": people,
        "categories": [{**category, "skeleton": [[1, 2]]}],
    }
    (root / "annotations" / f"person_keypoints_{split}.json").write_text(json.dumps(data))
    return root


def edit(root: Path, change: Any) -> None:
    file = root / "annotations" / "person_keypoints_train.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_opened(tmp_path: Path) -> None:
    dataset = open_poses(make_people(tmp_path, "train", 3), "train")
    assert len(dataset) == 3
    assert dataset.skeleton == Skeleton(("left_hand", "right_hand"), ((0, 1),))
    image, person = dataset.read(1)
    assert image.shape == (60, 50, 3)
    assert person.box.tolist() == [5, 5, 40, 50]
    x, y = person.keypoints[0, :2].astype(int)
    assert image[y, x].tolist() == [255, 0, 0]
    assert check_poses(dataset) == []


def test_crowds_and_people_without_keypoints_are_left_out(tmp_path: Path) -> None:
    make_people(tmp_path, "train", 4)

    def change(data: Any) -> None:
        data["annotations"][0]["iscrowd"] = 1
        data["annotations"][1]["keypoints"] = [0] * 6
        data["annotations"][2]["bbox"] = [5, 5, 0, 9]

    edit(tmp_path, change)
    [person] = open_poses(tmp_path, "train").people
    assert person.image_id == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(annotations=[]), "nobody with keypoints"),
        (lambda d: d.pop("images"), "no JSON of COCO"),
        (lambda d: d["annotations"][0].update(keypoints=[1, 2, 2]), "1 keypoints in annotation 0"),
        (lambda d: d["annotations"][0].update(image_id=99), "no JSON of COCO: KeyError"),
        (lambda d: d["images"][0].update(file_name="gone.png"), "images that are missing: .*gone"),
        (lambda d: d.update(categories=[]), "no category with keypoints"),
    ],
)
def test_broken_annotations(tmp_path: Path, change: Any, reason: str) -> None:
    make_people(tmp_path, "train", 2)
    edit(tmp_path, change)
    with pytest.raises(UsageError, match=f"^annotations: .*{reason}"):
        open_poses(tmp_path, "train")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^root: no folder"):
        open_poses(tmp_path / "gone", "train")
    with pytest.raises(UsageError, match=r"^split: no annotations for 'train'"):
        open_poses(tmp_path, "train")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UsageError, match=r"^annotations: .* cannot be read"):
        open_poses(tmp_path, "train", tmp_path / "a.json")


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    dataset = open_poses(make_people(tmp_path, "train", 3), "train")
    (tmp_path / "images/train/1.png").write_bytes(b"none")
    [problem] = check_poses(dataset)
    assert isinstance(problem, ImageProblem)
    assert "1.png" in str(problem)
    assert [p.image_id for p in dataset.without([problem]).people] == [0, 2]


@pytest.mark.parametrize(("name", "count"), [("coco", 17), ("jbd", 20), ("lsp", 14)])
def test_known_skeletons(name: str, count: int) -> None:
    known = skeleton(name)
    assert len(known.names) == len(known.palette) == count
    mirror = known.mirror
    assert [mirror[i] for i in mirror] == list(range(count))
    for i, other in enumerate(mirror):
        swapped = known.names[i].replace("left", "x").replace("right", "left").replace("x", "right")
        assert known.names[other] == swapped
    # Everything hangs together.
    seen = {known.links[0][0]}
    for _ in range(count):
        seen |= {end for link in known.links if seen & set(link) for end in link}
    assert len(seen) == count


def test_samples_have_the_known_skeletons(shared: Path) -> None:
    lsp = open_poses(shared / "data/lsp", "val")
    assert (lsp.skeleton.names, lsp.skeleton.links) == (
        skeleton("lsp").names,
        skeleton("lsp").links,
    )
    assert len(lsp) == 300
    coco = open_poses(shared / "data/coco_sample", "val")
    assert coco.skeleton.names == skeleton("coco").names
    assert set(map(frozenset, coco.skeleton.links)) == set(map(frozenset, skeleton("coco").links))
    assert len(coco.skeleton.sigmas) == 17


def test_a_skeleton_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "k.yaml"
    file.write_text("names: [tip, left_base, right_base]\nskeleton: [[tip, left_base]]\n")
    assert read_skeleton(file) == Skeleton(("tip", "left_base", "right_base"), ((0, 1),))
    assert read_skeleton(file).mirror == (0, 2, 1)
    for text in ("names: [a, a]", "names: [a]\nskeleton: [[a, b]]", "other: 1", "- a", "names: 3"):
        file.write_text(text)
        with pytest.raises(UsageError):
            read_skeleton(file)


def test_a_category_without_lines_gets_the_known_ones() -> None:
    assert from_category({"keypoints": list(skeleton("lsp").names)}) == skeleton("lsp")
