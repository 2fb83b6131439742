import json
import sys

import numpy as np
import pytest
from PIL import Image

from segformerpp import cli
from segformerpp.tasks import segmentation


@pytest.fixture
def street(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8)
    Image.fromarray(pixels).save("street.png")
    return tmp_path


def test_explain_end_to_end(street, capsys):
    code = cli.main(["explain", "street.png", "--merge", "hq", "--stages", "3", "--json", "s.json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "figure in street_explained.png" in said.out
    assert "% of the pixels get the label" in said.out
    with Image.open("street_explained.png") as image:
        assert image.format == "PNG"
        assert image.width > 1200
        assert image.height > 1000
    rows = json.loads((street / "s.json").read_text())
    assert [row["what"] for row in rows] == ["image", *["stage"] * 4, "groups"]
    assert (rows[-1]["stage"], rows[-1]["merged"]) == (3, 48)
    assert rows[0]["image"] == "street.png"


def test_people(street, capsys):
    command = ["explain", "street.png", "--model", "lsp-b0", "--merge", "2x2", "--stages", "4"]
    code = cli.main([*command, "--box", "20,10,60,80", "--out", "new/pose.jpg"])
    assert code == 0, capsys.readouterr().err
    with Image.open("new/pose.jpg") as image:
        assert image.format == "JPEG"
    assert "keypoints move by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--merge", "none"], "error: merge: none merges nothing"),
        (["--stages", "0"], "error: stages: numbers from 1 up"),
        (["--blocks", "1,x"], "error: blocks: numbers from 1 up"),
        (["--box", "1,2,3"], "error: box: "),
        (["--box", "a,b"], "error: box: numbers with commas between"),
        (["--out", "figure.gif"], "error: out: a file ending in"),
        (["--out", "street.png"], "error: out: street.png is the image itself"),
        (["--size", "64"], "error: size: height x width"),
        (["--json", "/proc/nowhere/rows.json"], "error: json: "),
    ],
)
def test_wrong_usage(street, capsys, words, text):
    assert cli.main(["explain", "street.png", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(text)
    assert said.count("\n") == 1
    assert [file.name for file in street.iterdir()] == ["street.png"]


def test_unreadable_image(street, capsys):
    (street / "text.png").write_text("text")
    assert cli.main(["explain", "text.png"]) == 1
    assert capsys.readouterr().err == "failed: text.png: not an image of a known format\n"
    assert not (street / "text_explained.png").exists()


def test_image_that_does_not_fit_into_the_memory(street, capsys, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(segmentation, "normalise", fail)
    assert cli.main(["explain", "street.png"]) == 1
    said = "failed: street.png: too large for the memory; choose a smaller size\n"
    assert capsys.readouterr().err == said
    assert not (street / "street_explained.png").exists()


def test_without_matplotlib(street, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["explain", "street.png"]) == 2
    said = 'error: out: needs matplotlib: pip install "segformerpp[plot]"\n'
    assert capsys.readouterr().err == said


def test_help_names_one_image(capsys):
    with pytest.raises(SystemExit):
        cli.main(["explain", "--help"])
    said = capsys.readouterr().out
    assert "IMAGE" in said
    assert "IMAGE [IMAGE ...]" not in said
    assert "--stages" in said
