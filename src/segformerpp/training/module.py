"""What Lightning trains: the network, its loss, its optimiser, and the average of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segformerpp.data.datasets import Sample
from segformerpp.metrics.pose import correct
from segformerpp.metrics.segmentation import confusion, mean_iou
from segformerpp.models import Segformer
from segformerpp.tasks import label_maps, segmentation
from segformerpp.tasks.pose import codec_of, to_image
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult
from segformerpp.training.batches import Batch
from segformerpp.training.losses import heatmap_loss, segmentation_loss
from segformerpp.training.network import adamw, rate_at
from segformerpp.training.settings import TrainSettings

#: The average reaches its full decay only as fast as there are steps to average.
_AVERAGE_WARMUP = 10


class TrainingModule(pl.LightningModule):
    """A SegFormer in training; what differs between tasks is in the classes made of this one.

    Args:
        model: the network, which is trained in place.
        settings: how.

    Attributes:
        metric: what the best weights have most of, the key of JSON rows.
        model: the network.
        average: the moving average of its weights; None if there is none.
        best: the best of the metric on the validation images so far, in percent.
    """

    metric: str

    def __init__(self, model: Segformer, settings: TrainSettings) -> None:
        super().__init__()
        self.model, self.settings, self.best = model, settings, -1.0
        self.average: AveragedModel | None = None
        if settings.ema:
            self.average = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
            self.average.requires_grad_(False)
        self.train()

    def loss(self, outputs: Tensor, *targets: Tensor) -> Tensor:
        """The loss (a scalar) of what the network gave for a batch."""
        raise NotImplementedError

    @property
    def averaged(self) -> Segformer:
        """What is validated and saved."""
        model = self.average.module if self.average is not None else self.model
        assert isinstance(model, Segformer)
        return model

    def train(self, mode: bool = True) -> TrainingModule:
        """Switch to training; norms may stay as they are."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        for module in self.model.modules():
            if self.settings.freeze_norms and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        # Dropout is a matter of the seed and the batch too, so that nothing has to be kept.
        name = f"{self.settings.seed} {batch.number} {self.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
        loss = self.loss(self.model(batch.images), *batch.targets)
        self.log("loss", loss, sync_dist=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the average follow."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        """AdamW, and the schedule of the learning rates."""
        optimizer = adamw(self.model, self.settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_at(step, self.settings)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the best was."""
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know it again."""
        self.best = checkpoint["best"]

    def predict(self, image: np.ndarray) -> np.ndarray:
        """What the averaged network gives for an image (H, W, 3) uint8: (K, h, w) float32."""
        x = torch.from_numpy(segmentation.normalise(image, self.model.metadata)[None])
        x = x.to(self.device, memory_format=torch.channels_last)
        return np.asarray(self.averaged(x)[0].float().cpu())

    def show(self, plot: Callable[[], Image.Image], number: int) -> None:
        """Put a prediction into the log, if this is the first process and few were put there."""
        wanted = self.global_rank == 0 and number < self.settings.pictures
        for log in self.loggers:
            if wanted and isinstance(log, TensorBoardLogger):
                log.experiment.add_image(
                    f"val/{number}", np.asarray(plot()), self.global_step, dataformats="HWC"
                )

    def add_up(self, counts: np.ndarray) -> np.ndarray:
        """The sum of what the processes have counted."""
        if not (dist.is_available() and dist.is_initialized()):
            return counts
        total = torch.from_numpy(counts).to(self.device)
        dist.all_reduce(total)
        return total.cpu().numpy()

    def _average(self, averages: Any, values: Any, count: Tensor | int) -> None:
        number = float(count)
        decay = min(self.settings.ema, (1 + number) / (_AVERAGE_WARMUP + number))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)


class SegmentationModule(TrainingModule):
    """With cross-entropy, for mIoU.

    Args:
        model, settings: see `TrainingModule`.
        class_weights: see `losses.class_weights`; None for none.
    """

    metric = "miou"

    def __init__(
        self, model: Segformer, settings: TrainSettings, class_weights: Tensor | None
    ) -> None:
        super().__init__(model, settings)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._counts = np.zeros((model.config.num_outputs,) * 2, np.int64)

    def loss(self, outputs: Tensor, *targets: Tensor) -> Tensor:
        """Cross-entropy, and Lovasz-Softmax, of logits (B, K, h, w) and masks (B, H, W)."""
        run = self.settings
        return segmentation_loss(outputs, targets[0], self.class_weights, run.ohem, run.lovasz)

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._counts[:] = 0

    def validation_step(self, sample: Sample, batch_idx: int) -> None:
        """Segment one whole image, as `Predictor` does."""
        image, mask = sample
        fitted = segmentation.fit(image, None, self.model.min_image_size)
        label_map = label_maps.from_logits(self.predict(fitted), (mask.shape[0], mask.shape[1]))
        self._counts += confusion(label_map, mask, len(self._counts))
        data = self.model.metadata
        result = SegmentationResult(label_map, data.labels, data.palette, image)
        self.show(result.plot, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Add up what all processes have seen."""
        self.log(self.metric, mean_iou(self.add_up(self._counts)))


class PoseModule(TrainingModule):
    """With squared errors of heatmaps, for PCK@0.1."""

    metric = "pck_0.1"

    def __init__(self, model: Segformer, settings: TrainSettings) -> None:
        super().__init__(model, settings)
        self.codec = codec_of(model.metadata)
        self._right = np.zeros(2)

    def loss(self, outputs: Tensor, *targets: Tensor) -> Tensor:
        """Squared errors of heatmaps (B, K, h, w), for targets and weights (B, K)."""
        return heatmap_loss(outputs, *targets)

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._right[:] = 0

    def validation_step(
        self, sample: tuple[np.ndarray, np.ndarray, np.ndarray], batch_idx: int
    ) -> None:
        """Find one person's keypoints, as `Predictor` does."""
        image, box, keypoints = sample
        transform = self.codec.transform(box)
        heatmaps = self.predict(self.codec.crop(image, transform))
        found = to_image(self.codec.decode(heatmaps[None])[0], transform)
        right = correct(found, keypoints, box, 0.1)
        self._right += np.nansum(right), np.isfinite(right).sum()
        data = self.model.metadata
        result = PoseResult(found[None], box[None], data.labels, data.skeleton, data.palette, image)
        self.show(result.plot, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Add up what all processes have seen."""
        right, labelled = self.add_up(self._right)
        self.log(self.metric, 100 * right / max(labelled, 1))
