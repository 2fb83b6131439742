"""One COCO file for a folder of images, with the regions as polygons to correct by hand.

python examples/folder_to_polygons.py photos/ --classes road,car --out photos.json

Load the file in CVAT, Label Studio, FiftyOne or whatever reads COCO's instances.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import segformerpp as sfpp
from segformerpp.data.files import find_images, write_whole


def main() -> None:
    """Segment all images, number what is found, write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="+", help="images, folders, patterns in quotes")
    parser.add_argument("--model", default="camvid-b0", help="bundled name, file, folder or hub id")
    parser.add_argument("--classes", help="names or numbers, with commas between (default: all)")
    parser.add_argument("--smallest", type=int, default=64, help="pixels; what is less is left out")
    parser.add_argument("--out", type=Path, default=Path("polygons.json"))
    args = parser.parse_args()

    def skip(_: object, error: sfpp.ImageError) -> None:
        print(f"left out: {error}")

    predict = sfpp.Predictor(args.model, classes=args.classes)
    files = [file.path for file in find_images(args.images)]
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for number, result in enumerate(predict.stream(files, skip), 1):
        found = result.polygons(args.smallest, image_id=number)
        for annotation in found["annotations"]:
            annotation["id"] += len(coco["annotations"])
        found["images"][0]["file_name"] = str(result.path)
        print(f"{result.path}: {len(found['annotations'])} regions")
        coco["categories"] = found["categories"]
        coco["images"] += found["images"]
        coco["annotations"] += found["annotations"]
    with write_whole(args.out) as file:
        file.write(json.dumps(coco).encode())
    print(f"{len(coco['annotations'])} regions in {len(coco['images'])} images: {args.out}")


if __name__ == "__main__":
    try:
        main()
    except sfpp.SegformerppError as error:
        raise SystemExit(f"error: {error}") from None
