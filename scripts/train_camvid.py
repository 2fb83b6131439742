"""Train the bundled `camvid-b0` from scratch on CamVid's training images.

    python scripts/train_camvid.py --data ../shared/data/camvid --out runs/camvid-b0

SegFormer-B0 without pretrained weights: AdamW, linear warm-up and polynomial decay, random scale,
flip, colour, crops that half of the time hold a rare class, cross-entropy at the full resolution
with mild class weights, exponential moving average of the weights. The average that is best on
`val` is kept; nothing is chosen on `test`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segformerpp.checkpoints import load, save_pretrained
from segformerpp.data.labels import label_set
from segformerpp.models import Metadata, Segformer, SegformerConfig

CAMVID = label_set("camvid")
LABELS = CAMVID.labels
RARE = (2, 6, 7, 9, 10)  # pole, sign, fence, pedestrian, bicyclist
IGNORED = 255
CROP = (352, 448)
METADATA = Metadata(
    labels=LABELS,
    palette=CAMVID.palette,
    source="trained from scratch on CamVid by scripts/train_camvid.py",
    license="research use, as the CamVid images that it was trained on",
)
CARD = """
## How it was made

From scratch, without pretrained weights, on the {images} training images of CamVid (360x480, the
11 classes and the split of SegNet), with

    python scripts/train_camvid.py --data camvid --out camvid-b0 --epochs {epochs} --seed {seed}

The epoch was chosen on `val`. Single scale, whole image, logits resized to the label map, from the
float16 weights that are here: {val:.1f} mIoU on `val`, {test:.1f} on `test`. Nothing was chosen on
`test`. IoU there in percent:

| {names} |
|{rule}
| {values} |

Small and made for trying things out: it has seen one city, from one car, in daylight.
"""

Pair = tuple[np.ndarray, np.ndarray]


def read_split(root: Path, split: str) -> list[Pair]:
    """All (image RGB HxWx3, label map HxW) pairs of a split; void becomes 255."""
    pairs = []
    for path in sorted((root / split).iterdir()):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        label = cv2.imread(str(root / f"{split}annot" / f"{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        if image is None or label is None:
            raise SystemExit(f"{path}: image or label map cannot be read")
        label[label >= len(LABELS)] = IGNORED
        pairs.append((cv2.cvtColor(image, cv2.COLOR_BGR2RGB), label))
    return pairs


def augment(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
    """One random crop of a pair: image float32 0..255, label map uint8, both `CROP` in size."""
    scale = 2 ** rng.uniform(-0.75, 1.1)
    height, width = (round(s * scale) for s in label.shape)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    below, right = max(CROP[0] - height, 0), max(CROP[1] - width, 0)
    image = np.pad(image.astype(np.float32), ((0, below), (0, right), (0, 0)), mode="edge")
    label = np.pad(label, ((0, below), (0, right)), constant_values=IGNORED)
    rows, columns = label.shape[0] - CROP[0], label.shape[1] - CROP[1]
    y, x = rng.integers(rows + 1), rng.integers(columns + 1)
    present = [c for c in RARE if (label[::4, ::4] == c).any()]
    if present and rng.random() < 0.5:
        candidates = np.argwhere(label == rng.choice(present))
        centre = candidates[rng.integers(len(candidates))]
        y = int(np.clip(centre[0] - rng.integers(CROP[0]), 0, rows))
        x = int(np.clip(centre[1] - rng.integers(CROP[1]), 0, columns))
    image, label = image[y : y + CROP[0], x : x + CROP[1]], label[y : y + CROP[0], x : x + CROP[1]]
    image = image * rng.uniform(0.7, 1.3) + rng.uniform(-25, 25)  # contrast, brightness
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.6, 1.4)  # saturation
    image = image * rng.uniform(0.92, 1.08, size=3)  # colour of the light
    return np.clip(image, 0, 255).astype(np.float32), label


def normalise(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) in 0..255 -> normalised (B, 3, H, W), channels last."""
    x = (images - np.array(METADATA.mean)) / np.array(METADATA.std)
    return torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2)


def batches(
    pairs: list[Pair], size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented batches."""
    order = rng.permutation(len(pairs))
    for start in range(0, len(order) - size + 1, size):
        crops = [augment(pairs[i][0], pairs[i][1], rng) for i in order[start : start + size]]
        images, labels = (np.stack(arrays) for arrays in zip(*crops, strict=True))
        yield normalise(images), torch.from_numpy(labels).long()


@torch.inference_mode()
def iou(model: Segformer, pairs: list[Pair]) -> np.ndarray:
    """IoU of each class in percent: whole images, single scale, logits resized, then argmax."""
    model.eval()
    k = len(LABELS)
    confusion = np.zeros((k, k), dtype=np.int64)
    for image, label in pairs:
        logits = model(normalise(image[None]))
        logits = F.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
        predicted = logits[0].argmax(0).numpy()
        valid = label != IGNORED
        index = label[valid].astype(np.int64) * k + predicted[valid]
        confusion += np.bincount(index, minlength=k * k).reshape(k, k)
    true = np.diag(confusion)
    return 100 * true / np.maximum(confusion.sum(0) + confusion.sum(1) - true, 1)


def class_weights(pairs: list[Pair]) -> Tensor:
    """Square root of the inverse class frequency, mean 1, within 0.4 and 3."""
    counts = sum(np.bincount(label.ravel(), minlength=256)[: len(LABELS)] for _, label in pairs)
    weights = np.sqrt(1 / (counts / np.sum(counts)))
    return torch.tensor(np.clip(weights / weights.mean(), 0.4, 3), dtype=torch.float32)


def main() -> None:
    """Train, keep the best on val, report on test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CamVid's splits")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    train, val = read_split(args.data, "train"), read_split(args.data, "val")
    weights = class_weights(train)

    config = SegformerConfig.of_size("b0", num_outputs=len(LABELS))
    model = Segformer(config, METADATA)
    average = deepcopy(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    total, warmup, step, best = args.epochs * (len(train) // args.batch), 100, 0, 0.0

    for epoch in range(1, args.epochs + 1):
        started, losses = time.perf_counter(), []
        model.train()
        for images, labels in batches(train, args.batch, rng):
            rate = args.lr * min((step + 1) / warmup, 1) * (1 - step / total) ** 0.9
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images)
            logits = F.interpolate(logits.float(), CROP, mode="bilinear", align_corners=False)
            loss = F.cross_entropy(logits, labels, weights, ignore_index=IGNORED)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item())
            decay = min(0.998, step / (step + 100))
            with torch.no_grad():
                for kept, value in zip(
                    average.state_dict().values(), model.state_dict().values(), strict=True
                ):
                    if kept.dtype.is_floating_point:
                        kept.lerp_(value, 1 - decay)
        line = f"epoch {epoch} loss {np.mean(losses):.4f} {time.perf_counter() - started:.0f} s"
        if epoch % 5 == 0 or epoch == args.epochs:
            score = iou(average, val)
            line += f" val mIoU {score.mean():.2f}"
            if score.mean() > best:
                best = float(score.mean())
                torch.save(average.state_dict(), args.out / "best.pt")
        print(line, flush=True)

    publish(args.out, average, args.data, args.epochs, args.seed)


def publish(out: Path, model: Segformer, data: Path, epochs: int, seed: int) -> None:
    """Write the best weights as a checkpoint folder whose card has its figures."""
    model.load_state_dict(torch.load(out / "best.pt", weights_only=True))
    save_pretrained(model, out, dtype=torch.float16)
    saved = load(out)
    val, test = (iou(saved, read_split(data, split)) for split in ("val", "test"))
    card = CARD.format(
        images=len(list((data / "train").iterdir())),
        epochs=epochs,
        seed=seed,
        val=val.mean(),
        test=test.mean(),
        names=" | ".join(LABELS),
        rule="---|" * len(LABELS),
        values=" | ".join(f"{value:.1f}" for value in test),
    )
    with (out / "README.md").open("a") as file:
        file.write(card)
    print(card)


if __name__ == "__main__":
    main()
