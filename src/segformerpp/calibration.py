"""Images of the user's own that a network is quantised on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segformerpp.arguments import Size
from segformerpp.data.files import find_images
from segformerpp.data.images import read_image
from segformerpp.errors import ImageError, UsageError
from segformerpp.models.config import Metadata
from segformerpp.tasks import segmentation

logger = logging.getLogger(__name__)

#: More images take longer and change nothing that can be measured.
MOST_IMAGES = 64


def check_rgb(channels: int) -> None:
    """Refuse to quantise a network of so many channels on images, unless it is 3.

    Raises:
        UsageError: if it is not.
    """
    if channels != 3:
        raise UsageError(f"calibrate: images are RGB, and this model takes {channels} channels")


class Calibration:
    """Up to `MOST_IMAGES` images, evenly chosen from all of a folder (see `int8.Images`).

    Args:
        images: a folder with images, also in folders below it; or one image, or several.
        metadata: for the normalisation.
        size: (H, W) that images are resized to; None for their own.

    Attributes:
        fingerprint: a hash of the images' names, sizes and times, and of `size`.

    Raises:
        UsageError: if there is no image.
    """

    def __init__(
        self,
        images: str | Path | Sequence[Path],
        metadata: Metadata,
        size: Size | None = None,
    ) -> None:
        sources = [images] if isinstance(images, str | Path) else images
        paths = [file.path for file in find_images([str(source) for source in sources])]
        chosen = np.linspace(0, len(paths) - 1, min(len(paths), MOST_IMAGES)).astype(int)
        self._paths = [paths[i] for i in chosen]
        self._sources, self._metadata, self._size = sources, metadata, size
        status = [(str(path.resolve()), path.stat()) for path in self._paths]
        facts = [(name, found.st_size, found.st_mtime_ns) for name, found in status]
        self.fingerprint = hashlib.sha256(repr((size, facts)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._paths)

    def inputs(
        self, least: Size, most: Size | None = None, batch: int = 1, pixels: bool = False
    ) -> Iterator[np.ndarray]:
        """See `int8.Images.inputs`; an image that cannot be read is left out with a warning.

        Raises:
            UsageError: if none can be read.
        """
        none = True
        for path in self._paths:
            try:
                image = read_image(path)
            except ImageError as error:
                logger.warning("left out of the calibration: %s", error)
                continue
            none = False
            height, width = (
                min(max(side, least[axis]), most[axis] if most else side + least[axis])
                for axis, side in enumerate(self._size or image.shape[:2])
            )
            image = segmentation.fit(image, (height, width), 1)
            x = image if pixels else segmentation.normalise(image, self._metadata)
            yield np.stack([x] * batch)
        if none:
            raise UsageError(f"calibrate: no image in {self._sources[0]} can be read")
