"""What Lightning trains: the network, its loss, its optimiser, and the average of its weights."""

from __future__ import annotations

import hashlib
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from segformerpp.data.datasets import Sample
from segformerpp.metrics.segmentation import confusion, mean_iou
from segformerpp.models import Segformer
from segformerpp.tasks import segmentation
from segformerpp.tasks.segmentation_result import SegmentationResult
from segformerpp.training.batches import Batch
from segformerpp.training.losses import cross_entropy
from segformerpp.training.network import adamw, rate_at
from segformerpp.training.settings import TrainSettings

#: The average reaches its full decay only as fast as there are steps to average.
_AVERAGE_WARMUP = 10


class SegmentationModule(pl.LightningModule):
    """A SegFormer in training.

    Args:
        model: the network, which is trained in place.
        settings: how.
        class_weights: see `losses.class_weights`; None for none.

    Attributes:
        model: the network.
        average: the moving average of its weights; None if there is none.
        best: the best mIoU on the validation images so far, in percent.
    """

    def __init__(
        self, model: Segformer, settings: TrainSettings, class_weights: Tensor | None
    ) -> None:
        super().__init__()
        self.model, self.settings, self.best = model, settings, -1.0
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.average: AveragedModel | None = None
        if settings.ema:
            self.average = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
            self.average.requires_grad_(False)
        self._counts = np.zeros((model.config.num_outputs,) * 2, np.int64)
        self.train()

    @property
    def averaged(self) -> Segformer:
        """What is validated and saved."""
        model = self.average.module if self.average is not None else self.model
        assert isinstance(model, Segformer)
        return model

    def train(self, mode: bool = True) -> SegmentationModule:
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
        logits = self.model(batch.images)
        loss = cross_entropy(logits, batch.masks, self.class_weights, self.settings.ohem)
        self.log("loss", loss, sync_dist=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the average follow."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._counts[:] = 0

    def validation_step(self, sample: Sample, batch_idx: int) -> None:
        """Segment one whole image, as `Predictor` does."""
        image, mask = sample
        fitted = segmentation.fit(image, None, self.model.config.min_image_size)
        x = torch.from_numpy(segmentation.normalise(fitted, self.model.metadata)[None])
        x = x.to(self.device, memory_format=torch.channels_last)
        logits = self.averaged(x)[0].float().cpu().numpy()
        label_map = segmentation.postprocess(logits, (mask.shape[0], mask.shape[1]))
        self._counts += confusion(label_map, mask, len(self._counts))
        if self.global_rank == 0 and batch_idx < self.settings.pictures:
            self._show(image, label_map, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Add up what all processes have seen."""
        counts = torch.from_numpy(self._counts).to(self.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        miou = mean_iou(counts.cpu().numpy())
        self.log("miou", miou)

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

    def _show(self, image: np.ndarray, label_map: np.ndarray, number: int) -> None:
        """Put a prediction into the log."""
        data = self.model.metadata
        result = SegmentationResult(label_map, data.labels, data.palette, image)
        for log in self.loggers:
            if isinstance(log, TensorBoardLogger):
                log.experiment.add_image(
                    f"val/{number}", np.asarray(result.plot()), self.global_step, dataformats="HWC"
                )

    def _average(self, averages: Any, values: Any, count: Tensor | int) -> None:
        number = float(count)
        decay = min(self.settings.ema, (1 + number) / (_AVERAGE_WARMUP + number))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
