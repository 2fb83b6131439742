"""Writing an ONNX graph node by node; what does not depend on the image is computed beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: ONNX operators as of here: Gelu is of 20, LayerNormalization of 17, ScatterND's sum of 16.
OPSET = 20
#: The version of the file format that belongs to it; older readers refuse newer ones.
IR_VERSION = 9

#: The same network in the form that suits a purpose: ``processor`` works on bands that stay in the
#: cache; ``onnxruntime`` too, and has attention as a node of ONNX Runtime's own, which never holds
#: the whole attention map; ``tensorrt`` keeps to what TensorRT's parser takes (as of 10.15: no sums
#: by index, no selection without order); ``int8`` has convolutions for all linear layers, because
#: quantised ones are faster in OpenVINO (AVX2: 2.5 times), and one scale per channel is then found
#: on the right axis; norms and projections stay by themselves, as in one another's weights they
#: would spread those of a channel.
Form = Literal["processor", "onnxruntime", "tensorrt", "int8"]


#: What the names of nodes begin with that int8 leaves as they are.
UNQUANTISED = "unquantised."


class Value:
    """The output of a node; arithmetic with it appends nodes.

    Sizes and index sets are numbers and arrays where they are known while the graph is written,
    and a `Value` where they follow the image. The same expressions serve both.
    """

    # So that `array + value` asks the value instead of taking it for an element.
    __array_ufunc__ = None

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def __add__(self, other: Operand) -> Value:
        return self.graph.op("Add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.graph.op("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.graph.op("Div", self, other)

    # Only sizes and indices are divided like this. They are not negative: rounding towards zero,
    # as ONNX has it, is rounding down.
    def __floordiv__(self, other: Operand) -> Value:
        return self.graph.op("Div", self, other)

    def __rfloordiv__(self, other: Operand) -> Value:
        return self.graph.op("Div", other, self)

    def __mod__(self, other: Operand) -> Value:
        return self.graph.op("Mod", self, other)

    def __rmod__(self, other: Operand) -> Value:
        return self.graph.op("Mod", other, self)

    def __lt__(self, other: Operand) -> Value:
        return self.graph.op("Less", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.graph.op("Greater", self, other)

    def __and__(self, other: Operand) -> Value:
        return self.graph.op("And", self, other)

    def __rand__(self, other: Operand) -> Value:
        return self.graph.op("And", other, self)


Operand = Value | np.ndarray | np.generic | int | float
Dim = Value | int  # one size
Index = Any  # indices: a Value or an array of int64


class Graph:
    """An ONNX graph in the making.

    Args:
        form: what the graph is for.
    """

    def __init__(self, form: Form = "processor") -> None:
        self.form = form
        #: What the names of nodes begin with; may be changed on the way.
        self.prefix = ""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[Any, ...], onnx.TensorProto] = {}

    @property
    def on_processor(self) -> bool:
        """Whether nodes are those that a processor is fastest with."""
        return self.form in ("processor", "onnxruntime")

    @contextmanager
    def unquantised(self) -> Iterator[None]:
        """What int8 leaves as it is."""
        before, self.prefix = self.prefix, UNQUANTISED
        yield
        self.prefix = before

    def op(self, kind: str, *inputs: Operand | None, **attributes: Any) -> Value:
        """Append a node with one output. Arrays and numbers among the inputs become constants."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(
        self, kind: str, outputs: int, *inputs: Operand | None, **attributes: Any
    ) -> list[Value]:
        """Append a node with several outputs; None stands for an optional input left out."""
        name = f"{self.prefix}{kind}_{len(self._nodes)}"
        names = [f"{name}.{i}" for i in range(outputs)]
        read = ["" if value is None else self._name(value) for value in inputs]
        self._nodes.append(helper.make_node(kind, read, names, name=name, **attributes))
        return [Value(self, name) for name in names]

    def _name(self, value: Operand) -> str:
        if isinstance(value, Value):
            return value.name
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        array = np.ascontiguousarray(array)
        # Weights are needed again in every band of a Mix-FFN, index sets in every block. Not so
        # biases: OpenVINO fuses only those with one user.
        content: Any = len(self._constants)
        if array.size == 1 or array.ndim > 1 or array.dtype != np.float32:
            content = hashlib.sha256(array.data).digest()
        key = (array.dtype.str, array.shape, content)
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(array, name)
        return self._constants[key].name

    def dims(self, *dims: Dim) -> Operand:
        """Sizes as one list, in the form in which nodes read shapes."""
        if not any(isinstance(dim, Value) for dim in dims):
            return np.array(dims, np.int64)
        return self.op("Concat", *(self.op("Reshape", dim, np.array([1])) for dim in dims), axis=0)

    def size(self, x: Value, axis: int) -> Value:
        """The size of one axis of a tensor, as a scalar."""
        shape = self.op("Shape", x, start=axis, end=axis + 1)
        return self.op("Squeeze", shape)

    def reshape(self, x: Index, *dims: Dim) -> Any:
        """Another shape; -1 once for what is left."""
        if not isinstance(x, Value):
            return x.reshape(dims)
        return self.op("Reshape", x, self.dims(*dims))

    def arange(self, first: Dim, end: Dim) -> Index:
        """The whole numbers from `first` up to before `end`."""
        if isinstance(first, Value) or isinstance(end, Value):
            return self.op("Range", first, end, 1)
        return np.arange(first, end)

    def where(self, condition: Index, then: Index, otherwise: Index) -> Index:
        """Choose element by element."""
        if any(isinstance(value, Value) for value in (condition, then, otherwise)):
            return self.op("Where", condition, then, otherwise)
        return np.where(condition, then, otherwise)

    def least(self, a: Dim, b: Dim) -> Dim:
        """The smaller of two sizes."""
        if isinstance(a, Value) or isinstance(b, Value):
            return self.op("Min", a, b)
        return min(a, b)

    def difference(self, a: Dim, b: Dim) -> Dim:
        """What a size `a` has more than `b`, which is not larger.

        OpenVINO computes with the bounds of sizes, where the difference could be negative, which
        it does not allow.
        """
        if isinstance(a, Value) or isinstance(b, Value):
            return self.op("Max", self.op("Sub", a, b), 0)
        return a - b

    def full(self, value: np.generic, *dims: Dim) -> Value:
        """A tensor that holds one value everywhere; a node, which a file stores in a few bytes."""
        filling = numpy_helper.from_array(np.array([value]))
        return self.op("ConstantOfShape", self.dims(*dims), value=filling)

    def transpose(self, x: Value, *order: int) -> Value:
        """The axes in another order."""
        return self.op("Transpose", x, perm=order)

    def cut(self, x: Value, axis: int, first: Dim, end: Dim) -> Value:
        """Part of one axis."""
        return self.op("Slice", x, *(self.dims(number) for number in (first, end, axis)))

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[tuple[Value, onnx.ValueInfoProto]],
        notes: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The finished model.

        Args:
            inputs: name, type and shape of each; `Value`s were made of the same names.
            outputs: what is given out, and its name, type and shape.
            notes: what stands beside the graph in the file.
        """
        nodes = [*self._nodes]
        for value, info in outputs:
            nodes.append(helper.make_node("Identity", [value.name], [info.name], name=info.name))
        graph = helper.make_graph(
            nodes,
            "segformerpp",
            list(inputs),
            [info for _, info in outputs],
            list(self._constants.values()),
        )
        opsets = {node.domain: 1 for node in nodes} | {"": OPSET}
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()],
            ir_version=IR_VERSION,
            producer_name="segformerpp",
        )
        helper.set_model_props(model, dict(notes))
        return model
