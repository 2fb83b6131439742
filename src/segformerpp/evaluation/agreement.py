"""Comparing a network with another form of itself, on images of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segformerpp.data.files import IMAGE_EXTENSIONS, expand_user, find_images
from segformerpp.data.images import read_image
from segformerpp.data.masks import IGNORED, Encode, from_ids, read_mask
from segformerpp.errors import ImageError, UsageError
from segformerpp.metrics.segmentation import confusion, mean_iou
from segformerpp.models.config import Metadata
from segformerpp.runtimes.export import FileForm
from segformerpp.runtimes.graph import IMAGES
from segformerpp.tasks import label_maps, segmentation

Segmenter = Callable[[Path], np.ndarray]


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, and its mask of class ids if there is one."""

    image: Path
    mask: Path | None


def find_pairs(images: str | Path, masks: str | Path | None) -> list[Pair]:
    """Find images, and masks of the same names, whatever their extensions.

    Raises:
        UsageError: if there are no images, or one has no mask.
    """
    found = find_images([images])
    if masks is None:
        return [Pair(file.path, None) for file in found]
    folder = expand_user(masks)
    by_stem = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_EXTENSIONS
    }
    for file in found:
        if file.stem not in by_stem:
            raise UsageError(f"masks: no {file.stem}.png or the like in {folder} for {file.path}")
    return [Pair(file.path, by_stem[file.stem]) for file in found]


def compare(
    first: Segmenter,
    second: Segmenter,
    pairs: Sequence[Pair],
    classes: int,
    reduce_labels: bool,
    advance: Callable[[], None],
    on_error: Callable[[ImageError], None],
) -> dict[str, Any]:
    """Two ways to segment, on the same images.

    Args:
        first: from an image's path to its label map; what is compared to.
        second: the other.
        pairs: the images.
        classes: K.
        reduce_labels: see `Metadata`.
        advance: called after each image.
        on_error: called with what is wrong with an image or a mask that cannot be read, or a mask
            of another size; the image does not count.

    Returns:
        ``images``; ``agreement``, the share of pixels with equal labels; with masks ``miou_before``
        and ``miou``, of the first and the second. In percent. Of no image nothing but ``images``.
    """
    encode = _lenient(classes, reduce_labels)
    counts, agreements = np.zeros((2, classes, classes), np.int64), []
    for pair in pairs:
        try:
            maps = first(pair.image), second(pair.image)
            if pair.mask:
                mask = read_mask(pair.mask, (maps[0].shape[0], maps[0].shape[1]), encode)
                counts += [confusion(label_map, mask, classes) for label_map in maps]
            agreements.append(float((maps[0] == maps[1]).mean()))
        except ImageError as error:
            on_error(error)
        advance()
    row: dict[str, Any] = {"images": len(agreements)}
    if not agreements:
        return row
    row["agreement"] = round(100 * float(np.mean(agreements)), 2)
    if any(pair.mask for pair in pairs):
        row["miou_before"], row["miou"] = (round(mean_iou(table), 2) for table in counts)
    return row


def exported(path: Path, metadata: Metadata, form: FileForm) -> Segmenter:
    """Segment with a file that `runtimes.export` wrote, as its users do.

    OpenVINO runs its own files, in f32 unless they hold int8; ONNX Runtime the others. Images
    outside the sizes of the file are resized.

    Args:
        path: the file.
        metadata: for the normalisation.
        form: of the file.
    """
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)

        def run(x: np.ndarray) -> np.ndarray:
            return session.run(None, {IMAGES: x})[0]
    else:
        from segformerpp.runtimes.openvino_core import core, ov

        options = {"INFERENCE_PRECISION_HINT": ov.Type.f32} if form.precision != "int8" else {}
        network = core().compile_model(path, "CPU", options)

        def run(x: np.ndarray) -> np.ndarray:
            return network(x)[0]

    def segment(path: Path) -> np.ndarray:
        image = read_image(path)
        own = (image.shape[0], image.shape[1])
        x = segmentation.fit(image, form.size.nearest(own), 1)
        if not form.pixels:
            x = segmentation.normalise(x, metadata)
        found = run(np.stack([x] * form.batch.least[0]))[0]
        if not form.labels:
            return label_maps.from_logits(found, own)
        return np.asarray(Image.fromarray(found).resize(own[::-1], Image.Resampling.NEAREST))

    return segment


def _lenient(classes: int, reduce_labels: bool) -> Encode:
    """For masks of class ids, in which any other number means that a pixel does not count."""
    first = int(reduce_labels)
    ids = range(first, first + classes)
    return from_ids(ids, ignored=[i for i in range(IGNORED + 1) if i not in ids])
