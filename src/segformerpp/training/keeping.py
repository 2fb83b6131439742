"""What a run keeps on disk: its best weights, and what it can go on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from segformerpp.checkpoints import save_pretrained
from segformerpp.data.files import write_whole
from segformerpp.training.module import TrainingModule
from segformerpp.training.settings import TrainSettings

RESUME = "resume.ckpt"
#: What people call the metrics.
TITLES = {"miou": "mIoU", "pck_0.1": "PCK@0.1"}


class Keeper(Callback):
    """Keeps the best weights, and what is needed to go on."""

    def __init__(
        self,
        out: Path,
        settings: TrainSettings,
        identity: Mapping[str, Any],
        report: Callable[[str], None],
        advance: Callable[[], None],
        validates: bool,
    ) -> None:
        self.out, self.settings, self.report, self.advance = out, settings, report, advance
        self.identity = dict(identity)
        self.validates = validates
        self.validated = -1
        self._seen = self._saved = self._in_vain = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Count what an earlier run has done."""
        self._saved = trainer.global_step
        self._count(trainer)
        self._stop_if_in_vain(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Save, unless a validation comes next, which saves too."""
        step = trainer.global_step
        validates = self.validates and step % self.settings.val_every == 0
        due = step % self.settings.save_every == 0 or step == self.settings.steps
        if step > self._saved and due and not validates:
            self._save(trainer)
        self._count(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the weights if they are the best, then save."""
        assert isinstance(module, TrainingModule)
        value = float(trainer.callback_metrics[module.metric])
        self.validated = trainer.global_step
        better = value > module.best
        self._in_vain = 0 if better else self._in_vain + 1
        loss = trainer.callback_metrics.get("loss")
        text = f"step {self.validated} of {self.settings.steps}: "
        text += f"{TITLES[module.metric]} {value:.2f} %"
        text += "" if loss is None else f", loss {float(loss):.3f}"
        self.report(f"{text}, the best so far" if better else text)
        if better:
            module.best = value
            if trainer.is_global_zero:
                save_pretrained(module.averaged, self.out / "best")
        if trainer.training or trainer.state.fn == "fit":
            self._save(trainer)
            self._stop_if_in_vain(trainer)

    def state_dict(self) -> dict[str, Any]:
        """How many validations in a row have found nothing better."""
        return {"in_vain": self._in_vain}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know it again."""
        self._in_vain = state_dict["in_vain"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what the run is, to compare with what one that goes on would be."""
        checkpoint["settings"] = self.identity

    def _stop_if_in_vain(self, trainer: pl.Trainer) -> None:
        # Not Lightning's EarlyStopping: it counts behind us, so that a run that goes on would know
        # one validation less, and brings the patience of the earlier run back.
        if 0 < self.settings.patience <= self._in_vain:
            trainer.should_stop = True

    def _count(self, trainer: pl.Trainer) -> None:
        while self._seen < trainer.global_step:
            self._seen += 1
            self.advance()

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved = trainer.global_step
        trainer.save_checkpoint(self.out / RESUME)


class WholeFiles(TorchCheckpointIO):
    """A checkpoint replaces the one before only once it is whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside, then rename."""
        with write_whole(Path(path)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # Where Ctrl-C cuts it off, closing the archive fails, too, and hides that.
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                raise
