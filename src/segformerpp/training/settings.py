"""What a training run is made of: every key of a configuration file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segformerpp.arguments import parse_size
from segformerpp.errors import UsageError


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """A training run.

    Args:
        data: camvid, cityscapes, ade20k, or folder for images and masks of your own; or coco, for
            human poses in COCO's layout
        root: the folder with the dataset
        split: what to train on
        val_split: what to choose the best weights on; empty for none
        classes: YAML file with the classes of a folder (default: classes.yaml in the root)
        keypoints: YAML file with the keypoints of poses (default: as the annotations have them)
        bad_images: error, to name all images and masks that cannot be used and stop; skip, to leave
            them out; unchecked, to start without reading them all first
        model: b0 to b5 for fresh weights; or what to start from: a name, file, folder or hub id,
            whose classifier starts afresh where the classes differ
        head_kind: of a fresh head, as an encoder from ImageNet gets one: linear, as NVlabs and
            transformers have it, or conv, as mmsegmentation has it
        merge: merge plan to train with, saved with the weights; empty for the model's own
        out: folder for weights, logs and what is needed to go on
        crop: height x width of the images that are trained on
        min_scale: images, or people, are resized by a factor from here
        max_scale: to here
        max_class_share: crops with more than this share of one class are drawn again
        balanced_crops: share of the crops that hold a class drawn from those in the image, each as
            likely as the other, so that rare ones are seen
        class_mix: share of the crops onto which half of the classes of another crop are pasted
            (ClassMix), so that small data shows more
        colour: strength of random changes of brightness, contrast, saturation and hue, from 0 to 1
        rotation: people are turned by up to so many degrees either way
        half_body: share of the crops that show the upper or the lower half of a person only
        sigma: of the Gaussians that poses are trained on, in pixels of the heatmaps
        coding: of poses in heatmaps: udp (unbiased), or msra, as older checkpoints have it
        batch: images of each process and step
        accumulate: batches over whose gradients a step takes the mean
        steps: optimiser steps
        epochs: times that all images are seen, which decide the steps if this is not 0
        lr: learning rate of the encoder
        head_lr_factor: that of the head, as a multiple
        warmup: steps in which the learning rates rise from 0
        hold: share of the steps, behind the warm-up, in which they stay
        power: of the polynomial by which they fall to 0 then
        drops: shares of the steps behind which they fall to a tenth instead, such as 0.81,0.95
        weight_decay: of weights; biases and norms have none
        clip: the largest norm of the gradients, so that one bad batch undoes nothing; 0 for any
        class_weights: none, or sqrt for the square root of the inverse frequency of each class,
            within 0.4 and 3
        ohem: train on the pixels whose true class is less likely than this, a sixteenth of all at
            least (online hard example mining); 0 for all pixels
        lovasz: weight of the Lovasz-Softmax loss beside the cross-entropy's 1: it is about IoU
            itself, so about rare classes as much as about others (its gain was not measured here)
        drop_path: rate of stochastic depth in the last block
        dropout: rate before the classifier
        freeze_norms: whether batch norms keep their statistics
        ema: decay of the moving average of the weights, which is what is validated and saved; 0
            for none
        checkpointing: recompute activations in the backward pass: less memory, a third more time
        precision: f32, bf16 or f16
        device: auto, cpu, cuda, mps
        devices: processes on this machine; torchrun decides for itself
        workers: processes that read images, for each training process
        val_every: steps between validations
        log_every: steps between entries of the loss in the logs
        save_every: steps between checkpoints to go on from
        patience: validations that find nothing better before training ends; 0 for no early end
        pictures: predictions on validation images in the log of TensorBoard
        seed: of all random numbers
    """

    data: str = "folder"
    root: str = ""
    split: str = "train"
    val_split: str = "val"
    classes: str = ""
    keypoints: str = ""
    bad_images: Literal["error", "skip", "unchecked"] = "error"
    model: str = "b0"
    head_kind: Literal["linear", "conv"] = "linear"
    merge: str = ""
    out: str = "trained"
    crop: str = "512x512"
    min_scale: float = 0.5
    max_scale: float = 2.0
    max_class_share: float = 0.75
    balanced_crops: float = 0.0
    class_mix: float = 0.0
    colour: float = 0.5
    rotation: float = 40.0
    half_body: float = 0.3
    sigma: float = 2.0
    coding: Literal["udp", "msra"] = "udp"
    batch: int = 8
    accumulate: int = 1
    steps: int = 10_000
    epochs: int = 0
    lr: float = 6e-5
    head_lr_factor: float = 10.0
    warmup: int = 500
    hold: float = 0.0
    power: float = 1.0
    drops: str = ""
    weight_decay: float = 0.01
    clip: float = 0.0
    class_weights: Literal["none", "sqrt"] = "none"
    ohem: float = 0.0
    lovasz: float = 0.0
    drop_path: float = 0.1
    dropout: float = 0.1
    freeze_norms: bool = False
    ema: float = 0.0
    checkpointing: bool = False
    precision: Literal["f32", "bf16", "f16"] = "f32"
    device: str = "auto"
    devices: int = 1
    workers: int = 2
    val_every: int = 1000
    log_every: int = 10
    save_every: int = 500
    patience: int = 0
    pictures: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: naming the key and what would be right.
        """
        if not self.root:
            raise UsageError("root: the folder with the dataset is needed")
        parse_size("crop", self.crop)
        for key in (
            "batch",
            "accumulate",
            "steps",
            "devices",
            "val_every",
            "log_every",
            "save_every",
        ):
            self._refuse_unless(key, getattr(self, key) >= 1, "1 or more")
        for key in ("epochs", "warmup", "workers", "patience", "pictures", "rotation", "seed"):
            self._refuse_unless(key, getattr(self, key) >= 0, "0 or more")
        for key in ("lr", "head_lr_factor", "min_scale", "power", "sigma"):
            self._refuse_unless(key, getattr(self, key) > 0, "more than 0")
        for key in ("balanced_crops", "class_mix", "colour", "half_body", "hold"):
            self._refuse_unless(key, 0 <= getattr(self, key) <= 1, "from 0 to 1")
        for key in ("ohem", "ema", "drop_path", "dropout"):
            self._refuse_unless(key, 0 <= getattr(self, key) < 1, "from 0 to below 1")
        self._refuse_unless("max_class_share", 0 < self.max_class_share <= 1, "from 0 to 1")
        for key in ("clip", "lovasz", "weight_decay"):
            self._refuse_unless(key, getattr(self, key) >= 0, "0 or more")
        self._refuse_unless("max_scale", self.max_scale >= self.min_scale, "min_scale or more")
        if not self.epochs:
            self._refuse_unless("warmup", self.warmup < self.steps, f"less than {self.steps} steps")
        try:
            falls = self.falls
        except ValueError:
            falls = (-1.0,)
        right = all(0 < share < 1 for share in falls)
        self._refuse_unless("drops", right, "shares from 0 to 1 with commas between")

    @property
    def task(self) -> str:
        """``pose`` or ``segmentation``."""
        return "pose" if self.data == "coco" else "segmentation"

    @property
    def falls(self) -> tuple[float, ...]:
        """`drops` as numbers."""
        return tuple(float(share) for share in self.drops.split(",") if share.strip())

    def _refuse_unless(self, key: str, fine: bool, right: str) -> None:
        if not fine:
            raise UsageError(f"{key}: {right}, not {getattr(self, key)}")
