"""Running ONNX models, and a network to compare them with."""

from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from segformerpp.models import Segformer
from segformerpp.runtimes.openvino_core import core
from tests.models.test_segformer import tiny

ENGINES = ("openvino", "onnxruntime")


@lru_cache
def network(head_kind: str, **changes: object) -> Segformer:
    """A tiny network, its norms and biases as if trained."""
    model = tiny(head_kind, **changes)  # type: ignore[arg-type]  # a head kind
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
        for name, values in module.named_parameters(recurse=False):
            if name == "bias":
                nn.init.normal_(values, std=0.5)
    return model


def tensors(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def expected(model: Segformer, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def images(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)


class Engine:
    """A model in OpenVINO or ONNX Runtime, in f32 on one thread."""

    def __init__(self, name: str, model: onnx.ModelProto) -> None:
        onnx.checker.check_model(model, full_check=True)
        self._run: Any
        if name == "openvino":
            options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
            read = core().read_model(model.SerializeToString())
            compiled = core().compile_model(read, "CPU", options)
            self._run = lambda x: compiled(x)[0]
        else:
            session_options = onnxruntime.SessionOptions()
            session_options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(model.SerializeToString(), session_options)
            self._run = lambda x: session.run(None, {"images": x})[0]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.array(self._run(x))


def assert_agree(logits: np.ndarray, reference: np.ndarray, matched: bool = True) -> None:
    """Equal to a relative 1e-4; or 99.9 % of the labels, where a close match went the other way."""
    assert logits.shape == reference.shape
    error = np.linalg.norm(logits - reference) / np.linalg.norm(reference)
    agreement = (logits.argmax(1) == reference.argmax(1)).mean()
    assert error < 1e-4 or (matched and agreement >= 0.999), (error, agreement)
