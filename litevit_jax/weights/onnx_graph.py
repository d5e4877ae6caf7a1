"""A vision transformer as an ONNX graph (opset 17), written node by node.

Input 'image' `[B, C, H, W]`, normalised float32, any B, or with `preprocess` bytes
`[B, H, W, C]` of any size (`onnx_images`); `exportable.Model.output` has the name and
shape of the output. Tracing JAX instead would need a converter that brings
two dozen packages and holds Orbax back. The graph of a plain transformer is known, and
nodes written by hand are those that runtimes fuse.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from litevit_jax import trees
from litevit_jax.models import ops
from litevit_jax.weights import exportable as models
from litevit_jax.weights import onnx_images

OPSET, IR_VERSION = 17, 8  # of one generation: ONNX 1.12
_FEW = 256  # numbers, of which half would be saved: they stay exact
_LIMIT = 2**31 - 2**20  # protobuf's for one file, with room for the nodes


def write(
    model: models.Model,
    metadata: dict[str, str],
    *,
    preprocess: bool = False,
    half: bool = False,
) -> bytes:
    """The file's contents, checked by the `onnx` package.

    With `half` weights are stored as float16, and widened when the file is loaded.

    Raises:
      ValueError: the parameters do not fit into one ONNX file, or nobody knows how
        images are prepared.
      RuntimeError: the package is not installed.
    """
    size = (2 if half else 4) * model.num_parameters
    if size > _LIMIT:
        raise ValueError(
            f"{model.num_parameters:,} parameters are {size / 2**30:.1f} GiB, an ONNX "
            "file holds 2 GiB; export to StableHLO (--config.format=stablehlo)"
        )
    if preprocess:
        onnx_images.check(model)
    onnx = models.require("onnx")
    # An ONNX file keeps the names that it always had.
    params = {trees.to_dotted(name): x for name, x in model.params.items()}
    opset = onnx_images.OPSET if preprocess else OPSET
    graph = _Graph(onnx, params, opset, half=half)
    x = _embed(graph, model, onnx_images.add(graph, model) if preprocess else "image")
    for i in range(model.encoder.depth):
        x = _block(graph, x, f"encoder.blocks_{i}", model.encoder.num_heads)
    if model.encoder.final_norm:
        x = graph.norm(x, "encoder.norm")
    if model.pool is not None:
        x = _head(graph, x, model.pool)
    graph.add("Identity", x, output=model.output)
    proto = graph.finish(model, preprocess=preprocess)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def read(data: bytes, *, preprocess: bool = False) -> Any:
    """image `[B, H, W, C]` -> output, as onnxruntime computes it on the CPU."""
    runtime = models.require("onnxruntime")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def call(image: np.ndarray) -> np.ndarray:
        if preprocess:
            return session.run(None, {"image": image})[0]
        nchw = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
        return session.run(None, {"image": nchw})[0]

    return call


class _Graph:
    """Nodes and constants of a graph, in the order in which they are added."""

    def __init__(
        self,
        onnx: Any,
        params: models.Arrays,
        opset: int = OPSET,
        *,
        half: bool = False,
    ) -> None:
        self.onnx, self.params, self.opset, self.half = onnx, params, opset, half
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any, name: str = "") -> str:
        """The name of a constant; lists are integers, scalars float32."""
        name = name or f"constant_{len(self.constants)}"
        kind = np.int64 if isinstance(value, list) else np.float32
        self.constants[name] = np.ascontiguousarray(np.asarray(value, kind))
        if not self.half or self.constants[name].size < _FEW:
            return name
        self.constants[f"{name}.half"] = self.constants.pop(name).astype(np.float16)
        return self.add(
            "Cast", f"{name}.half", output=name, to=self.onnx.TensorProto.FLOAT
        )

    def param(self, name: str) -> str:
        return self.constant(self.params[name], name)

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        node = self.onnx.helper.make_node(kind, inputs, [output], **attributes)
        self.nodes.append(node)
        return output

    def linear(self, x: str, name: str) -> str:
        x = self.add("MatMul", x, self.param(f"{name}.kernel"))
        return self.add("Add", x, self.param(f"{name}.bias"))

    def norm(self, x: str, name: str) -> str:
        affine = self.param(f"{name}.scale"), self.param(f"{name}.bias")
        return self.add("LayerNormalization", x, *affine, axis=-1, epsilon=ops.EPSILON)

    def mean(self, x: str) -> str:
        """The mean over axis 1, which an operator set names in its own way."""
        if self.opset < 18:
            return self.add("ReduceMean", x, axes=[1], keepdims=0)
        return self.add("ReduceMean", x, self.constant([1]), keepdims=0)

    def finish(self, model: models.Model, *, preprocess: bool = False) -> Any:
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        width, tokens = model.encoder.width, 1 + math.prod(model.grid)
        sizes = {"tokens": (tokens, width), "features": (width,)}
        shape = ["B", *sizes.get(model.output, (model.num_classes,))]
        image = helper.make_tensor_value_info(
            "image", kind, ["B", model.channels, *model.image_size]
        )
        if preprocess:
            of_bytes = self.onnx.TensorProto.UINT8
            sides = ["B", "H", "W", model.channels]
            image = helper.make_tensor_value_info("image", of_bytes, sides)
        graph = helper.make_graph(
            self.nodes,
            "vision_transformer",
            [image],
            [helper.make_tensor_value_info(model.output, kind, shape)],
            [
                self.onnx.numpy_helper.from_array(value, name)
                for name, value in self.constants.items()
            ],
        )
        return helper.make_model(
            graph,
            producer_name="litevit_jax",
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSION,
        )


def _embed(graph: _Graph, model: models.Model, image: str) -> str:
    """Tokens `[B, T, D]` with positions added, the class token first."""
    side, width = model.encoder.patch_size, model.encoder.width
    name = "encoder.patch_embed"
    kernel = graph.params[f"{name}.kernel"]  # [P*P*C, D] -> [D, C, P, P]
    kernel = kernel.reshape(side, side, model.channels, width).transpose(3, 2, 0, 1)
    x = graph.add(
        "Conv",
        image,
        graph.constant(kernel, f"{name}.kernel"),
        graph.param(f"{name}.bias"),
        kernel_shape=[side, side],
        strides=[side, side],
    )
    # [B, D, rows, columns] -> [B, D, N] -> [B, N, D]; 0 keeps an axis.
    x = graph.add("Reshape", x, graph.constant([0, width, math.prod(model.grid)]))
    x = graph.add("Transpose", x, perm=[0, 2, 1])
    pos = model.pos_table
    x = graph.add("Add", x, graph.constant(pos[:, 1:], "pos_embed"))
    token = graph.params["encoder.cls_token"] + pos[:, :1]
    batch = graph.add("Shape", "image", start=0, end=1)
    shape = graph.add("Concat", batch, graph.constant([1, width]), axis=0)
    cls = graph.add("Expand", graph.constant(token, "cls_token"), shape)
    return graph.add("Concat", cls, x, axis=1)


def _block(graph: _Graph, x: str, name: str, num_heads: int) -> str:
    y = graph.norm(x, f"{name}.norm1")
    x = graph.add("Add", x, _attention(graph, y, f"{name}.attn", num_heads))
    y = graph.linear(graph.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
    # Runtimes know this order of operations as one GELU.
    cdf = graph.add("Erf", graph.add("Div", y, graph.constant(math.sqrt(2))))
    y = graph.add("Mul", y, graph.add("Add", cdf, graph.constant(1.0)))
    y = graph.add("Mul", y, graph.constant(0.5))
    return graph.add("Add", x, graph.linear(y, f"{name}.mlp.fc2"))


def _attention(graph: _Graph, x: str, name: str, num_heads: int) -> str:
    width = graph.params[f"{name}.proj.bias"].size
    size = width // num_heads
    qkv = graph.linear(x, f"{name}.qkv")
    # [B, T, 3D] -> [B, T, 3, A, D/A] -> [3, B, A, T, D/A]
    qkv = graph.add("Reshape", qkv, graph.constant([0, 0, 3, num_heads, size]))
    qkv = graph.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    parts = [graph.add("Gather", qkv, graph.constant([i]), axis=0) for i in range(3)]
    q, k, v = (graph.add("Squeeze", p, graph.constant([0])) for p in parts)
    q = graph.add("Mul", q, graph.constant(size**-0.5))
    logits = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
    probs = graph.add("Softmax", logits, axis=-1)
    out = graph.add("Transpose", graph.add("MatMul", probs, v), perm=[0, 2, 1, 3])
    out = graph.add("Reshape", out, graph.constant([0, 0, width]))
    return graph.linear(out, f"{name}.proj")


def _head(graph: _Graph, x: str, pool: str) -> str:
    """Pooled tokens `[B, D]`, normalised and classified as far as there is a head."""
    if pool == "avg":
        patches = [graph.constant([n]) for n in (1, np.iinfo(np.int64).max, 1)]
        x = graph.add("Slice", x, *patches)
        x = graph.mean(x)
    else:
        x = graph.add("Gather", x, graph.constant([0]), axis=1)
        x = graph.add("Squeeze", x, graph.constant([1]))
    if "head.fc_norm.scale" in graph.params:
        x = graph.norm(x, "head.fc_norm")
    return graph.linear(x, "head.fc") if "head.fc.kernel" in graph.params else x
