"""Finding people in images with an object detector of transformers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segformerpp.errors import UsageError

_PERSON = "person"


class PersonDetector:
    """Finds people, for `Predictor(..., detector=...)`; may be used from several threads.

    Args:
        source: a hub id or a folder with an object detector as transformers has them, one of whose
            labels is ``person``: YOLOS, DETR and the like.
        threshold: people that the detector is less sure of are left out, 0 to 1.
        device: as the runtimes have it; the detector runs in PyTorch on CUDA if that is wanted or
            ``auto``, and there, else on the processor.
        offline: whether to take models from the local cache only.

    Raises:
        UsageError: if transformers is not installed, there is no such detector, it needs what is
            not installed, it knows no people, or the threshold makes no sense.
    """

    def __init__(
        self,
        source: str | Path,
        threshold: float = 0.5,
        device: str = "auto",
        offline: bool = False,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise UsageError(f"detector_threshold: from 0 to 1, not {threshold}")
        try:
            from transformers import AutoImageProcessor, AutoModelForObjectDetection
        except ImportError:
            raise UsageError(
                "detector: needs transformers: pip install 'segformerpp[hf]'"
            ) from None
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(
                source, local_files_only=offline
            )
            model = AutoModelForObjectDetection.from_pretrained(source, local_files_only=offline)
        except Exception as error:  # transformers, and what reads the weights, raise what they like
            reason = " ".join(str(error).split())
            raise UsageError(f"detector: {source} cannot be loaded: {reason[:300]}") from None
        labels = {int(i): str(label) for i, label in model.config.id2label.items()}
        self._people = [i for i, label in labels.items() if label.strip().lower() == _PERSON]
        if not self._people:
            some = ", ".join(list(labels.values())[:5])
            raise UsageError(f"detector: {source} finds no {_PERSON}, but {some} and the like")
        wanted = device == "auto" or device.startswith("cuda")
        cuda = "cuda" if device == "auto" else device
        self._device = torch.device(cuda if wanted and torch.cuda.is_available() else "cpu")
        self._model: Any = model.eval().to(self._device)
        self._threshold, self._lock = threshold, threading.Lock()

    def __call__(self, image: np.ndarray) -> list[list[float]]:
        """Find the people in an image (H, W, 3) uint8 RGB.

        Returns:
            x, y, width, height of each, the surest first, in the coordinates of `PoseResult`, in
            which detectors' boxes begin half a pixel earlier: they count from the image's corner.
        """
        with self._lock, torch.inference_mode():
            inputs = self._processor(images=Image.fromarray(image), return_tensors="pt")
            outputs = self._model(**inputs.to(self._device))
            [found] = self._processor.post_process_object_detection(
                outputs, threshold=self._threshold, target_sizes=[image.shape[:2]]
            )
        scores, labels, corners = (
            found[key].cpu().double().numpy() for key in ("scores", "labels", "boxes")
        )
        boxes = np.column_stack((corners[:, :2] - 0.5, corners[:, 2:] - corners[:, :2]))
        kept = np.isin(labels, self._people) & (boxes[:, 2:] > 0).all(axis=1)
        order = np.argsort(-scores[kept], kind="stable")
        return boxes[kept][order].tolist()
