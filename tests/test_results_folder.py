import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformerpp.data.files import ImageFile, find_images
from segformerpp.errors import ImageError, UsageError
from segformerpp.models import Segformer
from segformerpp.predictor import Predictor
from segformerpp.results_folder import ResultsFolder, segment_files
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult


@pytest.fixture
def files(tmp_path: Path) -> list[ImageFile]:
    """Three small images, of which the second is none."""
    folder = tmp_path / "in" / "sub"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        Image.new("RGB", (40, 36), "green").save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_text("text")
    return find_images([tmp_path / "in"])


@pytest.fixture(scope="module")
def predictor(random_model: Segformer) -> Predictor:
    return Predictor(random_model, device="cpu")


def segment(
    predictor: Predictor, files: list[ImageFile], folder: ResultsFolder
) -> tuple[list[SegmentationResult | PoseResult], list[str]]:
    errors: list[str] = []
    results = list(segment_files(predictor, files, folder, lambda e: errors.append(str(e))))
    folder.write_report(files)
    return results, errors


def test_files_and_report(predictor: Predictor, files: list[ImageFile], tmp_path: Path) -> None:
    report = tmp_path / "deep" / "report.json"
    folder = ResultsFolder(tmp_path / "out", ["labels"], report)
    results, errors = segment(predictor, folder.missing(files), folder)
    assert [result.path for result in results] == [files[0].path, files[2].path]
    assert errors == [f"{files[1].path}: not an image of a known format"]
    written = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        *("a_labels.png", "sub/c_labels.png")
    ]
    rows = json.loads(report.read_text())
    assert [row["image"] for row in rows] == [str(file.path) for file in files]
    assert rows[1] == {"image": str(files[1].path), "error": errors[0]}
    row = rows[0]
    assert row["size"] == "36x40"
    assert row["merge"] == "none"
    assert row["runtime"] == "openvino"
    assert row["network_ms"] > 0
    assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert set(row["shares"]) <= set(predictor.labels)


def test_resuming(predictor: Predictor, files: list[ImageFile], tmp_path: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"

    def missing(what: tuple[str, ...] = ("labels",), report: Path | None = None) -> list[str]:
        folder = ResultsFolder(out, what, report, resume=True)
        return [file.stem for file in folder.missing(files)]

    segment(predictor, files[:2], ResultsFolder(out, ["labels"], report))
    assert missing() == ["b", "sub/c"]
    assert missing(("labels", "color")) == ["a", "b", "sub/c"]
    assert missing(report=report) == ["b", "sub/c"]
    assert missing(report=tmp_path / "other.json") == ["a", "b", "sub/c"]
    (out / "b_labels.png").touch()  # of an earlier run, before the image was damaged
    assert missing(report=report) == ["b", "sub/c"]
    assert len(ResultsFolder(out, ["labels"]).missing(files)) == 3

    Image.new("RGB", (40, 36), "red").save(files[1].path)
    folder = ResultsFolder(out, ["labels"], report, resume=True)
    segment(predictor, folder.missing(files), folder)
    rows = json.loads(report.read_text())
    assert [row["image"] for row in rows] == [str(file.path) for file in files]
    assert all("shares" in row for row in rows)
    assert missing(report=report) == []


def test_errors_in_writing_end_the_run(
    predictor: Predictor, files: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ResultsFolder(tmp_path / "out", ["labels"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("in the way")
    with pytest.raises(OSError, match=r"c_labels\.png"):
        segment(predictor, files, folder)
    assert not list((tmp_path / "out").glob(".*"))


def test_too_long_a_name_is_a_failure_of_that_image_alone(
    predictor: Predictor, tmp_path: Path
) -> None:
    name = "x" * 250
    for stem in ("a", name, "z"):
        Image.new("RGB", (40, 36)).save(tmp_path / f"{stem}.png")
    files = find_images([tmp_path])
    report = tmp_path / "report.json"
    for resume in (False, True):
        folder = ResultsFolder(tmp_path / "out", ["labels"], report, resume)
        results, errors = segment(predictor, folder.missing(files), folder)
        assert len(results) == (0 if resume else 2)
        assert errors == [f"{tmp_path / name}.png: the names of its outputs are too long"]
    assert json.loads(report.read_text())[-1]["error"] == errors[0]


def test_results_too_large_to_draw(
    predictor: Predictor, files: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(SegmentationResult, "_overlay", fail)
    results, errors = segment(predictor, files[:1], ResultsFolder(tmp_path / "out"))
    assert (results, errors) == ([], [f"{files[0].path}: too large for the memory"])


def test_the_report_is_kept_up_to_date(
    predictor: Predictor, files: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.json"
    for seconds, expected in ((100.0, False), (0.0, True)):
        monkeypatch.setattr("segformerpp.results_folder.REPORT_SECONDS", seconds)
        folder = ResultsFolder(tmp_path / "out", ["labels"], report)
        results = segment_files(predictor, files, folder, lambda _: None)
        next(results)
        assert report.exists() == expected
        results.close()  # type: ignore[attr-defined]


def test_classes_of_the_same_name_are_added_up(tmp_path: Path) -> None:
    label_map = np.array([[0, 1, 2, 2]], np.uint8)
    names, colours = ("a", "b", "a"), ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    result = SegmentationResult(label_map, names, colours, np.zeros((1, 4, 3), np.uint8))
    folder = ResultsFolder(tmp_path, ["labels"], tmp_path / "x.json")
    folder.write(ImageFile(Path("a.png"), "a"), result)
    folder.write_report([])
    assert json.loads((tmp_path / "x.json").read_text())[0]["shares"] == {"a": 0.75, "b": 0.25}


def test_what_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[1]")
    with pytest.raises(UsageError, match=r"out: cannot write to .*file"):
        ResultsFolder(tmp_path / "file")
    with pytest.raises(UsageError, match=r"json: cannot write to .*file"):
        ResultsFolder(tmp_path, report=tmp_path / "file" / "x.json")
    with pytest.raises(UsageError, match=r"json: .* is a folder"):
        ResultsFolder(tmp_path, report=tmp_path)
    with pytest.raises(UsageError, match=r"json: .* cannot be resumed"):
        ResultsFolder(tmp_path, report=tmp_path / "file", resume=True)
    with pytest.raises(UsageError, match="save: any of"):
        ResultsFolder(tmp_path / "new", ["foo"])
    with pytest.raises(UsageError, match="out: ~no-such-user/y: there is no such user"):
        ResultsFolder("~no-such-user/y")
    with pytest.raises(UsageError, match=r"out: cannot write to .*: File name too long"):
        ResultsFolder(tmp_path / ("x" * 300))
    ResultsFolder(tmp_path / "new", report=tmp_path / "other" / "x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_failures_alone_make_a_report_too(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path, report=tmp_path / "x.json")
    names = ["ä.png", "\udcff.png"]  # the second is no UTF-8 on disk
    files = [ImageFile(Path(name), name[0]) for name in names]
    for file in files:
        folder.note_failure(file, ImageError("broken"))
    folder.write_report(files)
    assert [row["image"] for row in json.loads((tmp_path / "x.json").read_text())] == names


def test_labels_read_back(predictor: Predictor, files: list[ImageFile], tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "out")
    results, _ = segment(predictor, files, folder)
    for result, stem in zip(results, ("a", "sub/c"), strict=True):
        stored = np.asarray(Image.open(tmp_path / "out" / f"{stem}_labels.png"))
        assert isinstance(result, SegmentationResult)
        np.testing.assert_array_equal(stored, result.label_map)
