"""A network in whole numbers of 8 bits, quantised by nncf on images of the user's own."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segformerpp import __version__, cache
from segformerpp.arguments import Size
from segformerpp.checkpoints import Checkpoint
from segformerpp.errors import UsageError
from segformerpp.runtimes.graph import (
    BEFORE,
    BEHIND,
    IMAGES,
    UNQUANTISED,
    Interface,
    build,
)
from segformerpp.runtimes.int8_native import use_quantised_depthwise
from segformerpp.runtimes.openvino_core import core, ov, passes
from segformerpp.runtimes.sizes import least_size
from segformerpp.runtimes.traits import Traits

_KIND = "int8"
#: How long a process waits for another one that quantises the same network.
_PATIENCE_SECONDS = 3600.0


class Images(Protocol):
    """Images to quantise a network on.

    Attributes:
        fingerprint: changes when they change.
    """

    fingerprint: str

    def __len__(self) -> int:
        """How many there are."""

    def inputs(
        self, least: Size, most: Size | None = None, batch: int = 1, pixels: bool = False
    ) -> Iterable[np.ndarray]:
        """What goes into a network, image by image, once.

        Args:
            least: the smallest size (H, W); what is smaller is resized.
            most: the largest; None for no limit.
            batch: how often each image is repeated.
            pixels: whether (B, H, W, 3) uint8 instead of normalised (B, 3, H, W) float32.
        """


@dataclass(frozen=True, slots=True)
class Inputs:
    """What goes into a network, image by image; can be gone through several times.

    Args:
        images: the images; for the other arguments see `Images.inputs`.
    """

    images: Images
    least: Size
    most: Size | None = None
    batch: int = 1
    pixels: bool = False

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.images.inputs(self.least, self.most, self.batch, self.pixels))


def quantised(
    checkpoint: Checkpoint, images: Images | None, traits: Traits
) -> tuple[ov.Model, str | None]:
    """The network for images of any size from `sizes.least_size` up, and batches of any size.

    Quantising takes about half a second for each image and megapixel (B0). What comes of it is
    kept in the cache.

    Args:
        checkpoint: the network.
        images: to quantise it on, unless the cache has it quantised on the same; None for what the
            cache has, whatever the images were.
        traits: what is known of the runtime.

    Returns:
        The network, and the fingerprint of the images.

    Raises:
        UsageError: if there is nothing in the cache and no images, or nncf is missing.
    """
    key = {
        "model": checkpoint.name,
        "weights": checkpoint.digest,
        "config": checkpoint.config.to_dict(),
        "merge": checkpoint.merge_plan.to_dict(),
        "traits": asdict(traits),
        "segformerpp": __version__,
        "code": [cache.code_version(p) for p in ("runtimes", "plans", "checkpoints")],
    }
    fingerprint = _latest(key) if images is None else images.fingerprint

    def make() -> bytes:
        if images is None:
            raise UsageError(
                "precision: int8 needs images to be quantised on: --calibrate FOLDER (calibrate= "
                "in Python), once for each model and plan"
            )
        interface = Interface(None, None)
        config, plan = checkpoint.config, checkpoint.merge_plan
        graph = build(config, checkpoint.tensors(), plan, interface, form="int8", traits=traits)
        inputs = Inputs(images, least_size(config, plan))
        model = quantise_openvino(graph, inputs, len(images))
        if traits.native == "bf16":
            use_quantised_depthwise(model)
        return _packed(model)

    if checkpoint.digest is None or fingerprint is None:
        return _unpacked(make()), fingerprint
    key["images"] = fingerprint
    return cache.fetch(_KIND, key, make, _unpacked, patience=_PATIENCE_SECONDS), fingerprint


def quantise_openvino(graph: Any, inputs: Iterable[np.ndarray], count: int) -> ov.Model:
    """Quantise an ONNX model of form ``int8`` for OpenVINO.

    Args:
        graph: the model.
        inputs: what it is quantised on.
        count: how many of them there are.

    Raises:
        UsageError: if nncf is missing.
    """
    model = core().read_model(graph.SerializeToString())
    # Else nncf takes the wrong axis of weights that a Reshape of the importer stands behind.
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    return quantise(model, inputs, count)


def quantise(model: Any, inputs: Iterable[np.ndarray], count: int) -> Any:
    """Quantise the weights and activations of an ONNX or OpenVINO model of form ``int8``.

    What stays as it is: attention and the matching of tokens, all of them matrix products, which
    OpenVINO has faster kernels for than int8 would give (and in bf16 where there is such a thing);
    norms, with what centres tokens for them, and the softmax, as nncf leaves them; what operators
    of our own compute by then (`native`; some only come afterwards, see `int8_native`); and what
    stands before and behind the network. Nothing is shifted from activations to weights ("smooth
    quantisation"): camvid-b0 loses a third of its labels by it.

    Raises:
        UsageError: if nncf is missing.
    """
    nncf = _nncf()
    from nncf.quantization import advanced_parameters as advanced

    smooth = advanced.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
    with redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(inputs, lambda x: {IMAGES: x}),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=count,
            ignored_scope=nncf.IgnoredScope(
                types=["MatMul"],
                patterns=[f"{prefix[:-1]}[.].*" for prefix in (BEFORE, BEHIND, UNQUANTISED)],
                validate=False,
            ),
            advanced_parameters=advanced.AdvancedQuantizationParameters(smooth_quant_alphas=smooth),
        )


def _nncf() -> Any:
    quiet = "NNCF_CI"  # reports to its makers are sent unless this is set
    before = os.environ.get(quiet)
    os.environ[quiet] = before or "1"
    try:
        with redirect_stdout(io.StringIO()):
            import nncf
    except ImportError:
        raise UsageError(
            "precision: int8 needs nncf, which is not installed: pip install 'segformerpp[int8]'"
        ) from None
    finally:
        if before is None:
            del os.environ[quiet]
    import logging

    nncf.set_log_level(logging.ERROR)
    return nncf


def _latest(key: dict[str, Any]) -> str | None:
    """The images that a network in the cache was quantised on the last time that it was used."""
    for entry in cache.entries():
        found = dict(entry.key)
        if entry.kind == _KIND and found.pop("images", None) and found == key:
            return str(entry.key["images"])
    return None


def _packed(model: ov.Model) -> bytes:
    """The two files of a model in one."""
    with tempfile.TemporaryDirectory() as folder:
        description, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        ov.serialize(model, description, weights)
        text = description.read_bytes()
        return len(text).to_bytes(8, "little") + text + weights.read_bytes()


def _unpacked(data: bytes) -> ov.Model:
    start = 8 + int.from_bytes(data[:8], "little")
    weights = ov.Tensor(np.frombuffer(data, np.uint8, offset=start))
    return core().read_model(data[8:start], weights)
