"""Counts the kernels that a GPU launches for one training step, on a machine without a GPU.

    python -m benchmarks.launches [--recipes=dcgan,cgan] [--precisions=float32] [--operations]

A launch takes 5 to 6 microseconds, which bounds the step time of small networks.  The step's graph
is optimized for a GPU that does not exist and held against the GPU kernels that the `tensorflow`
package registers on every machine (the `tensorflow-cpu` package registers none).  The columns:

  launches        operations that run on the device; one is counted for each
  device_to_host  edges from device to host memory, for each of which the host waits
  without_kernel  operations that the device has no kernel for and the step does not place on the
                  host itself
  collectives     operations that communicate with other replicas

An operation that only changes a tensor's shape or passes on a buffer launches nothing.  With XLA,
the step of one replica is one program and the random numbers that it receives: the program counts
as one launch, and the kernels that it consists of are known only on a GPU.  With several replicas,
XLA compiles groups of operations, which are not counted.  With --operations the launches are listed
by operation.  The exit code is 1 if a step has an edge to host memory or an operation without a
kernel, or if a step on one replica has more launches than CEILINGS allows.
"""

import argparse
import collections
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from benchmarks import harness, trained

PRECISIONS = ("float32", "bfloat16", "float16")
GPU = "/job:localhost/replica:0/task:0/device:GPU:0"
CPU = "/job:localhost/replica:0/task:0/device:CPU:0"
ALIGNMENT = 64  # bytes at which TensorFlow shares a part of a buffer instead of copying it

# Operations that return their input's buffer, values known before the step, or an empty result.
NO_LAUNCH = {
    "Const", "Placeholder", "PlaceholderWithDefault", "VarHandleOp", "ReadVariableOp",
    "AssignVariableOp", "Identity", "IdentityN", "StopGradient", "PreventGradient", "Reshape",
    "ExpandDims", "Squeeze", "Shape", "ShapeN", "NoOp", "Switch", "Merge", "EnsureShape",
    "Bitcast",
}  # fmt: skip
# The largest number of launches of a step on one replica, without XLA, in float32, bfloat16 and
# float16; more is a regression.
CEILINGS = {
    "cgan": (210, 240, 312),
    "dcgan": (200, 223, 272),
    "dcgan-kstep": (134, 153, 201),
    "dcgan-sigmoid": (169, 190, 234),
    "dcgan-studiogan": (500, 534, 606),
    "mlp": (134, 153, 201),
    "mlp-small": (152, 181, 253),
    "r3gan": (1045, 1098, 1149),
    "sngan": (1600, 1760, 1906),
}
UPDATES = ("ResourceApply", "AssignAdd", "AssignSub", "ResourceStridedSliceAssign")


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one step costs on one device.

    Attributes:
      operations: number of launches by type of operation.
      device_to_host: "producer -> consumer" of each edge from device to host memory.
      without_kernel: operations that the device has no kernel for.
      collectives: number of collective operations.
    """

    operations: Mapping[str, int]
    device_to_host: tuple[str, ...]
    without_kernel: tuple[str, ...]
    collectives: int

    @property
    def launches(self) -> int:
        """Number of launches."""
        return sum(self.operations.values())


def count_step(
    recipe: str,
    *,
    precision: str = "float32",
    replicas: int = 1,
    xla: bool = False,
    **settings: Any,
) -> Counts:
    """Counts the launches of a step of a recipe on one of its replicas.

    Args:
      recipe: name of the recipe.
      precision: number format of the networks.
      replicas: 1, or the number of logical CPUs that stand for GPUs.
      xla: whether the step of one replica is compiled into one program.
      **settings: further settings of the run.
    """
    devices = "cpu" if replicas == 1 else f"cpu:{replicas}"
    shape = {**trained.shape_of(recipe), **settings.pop("shape", {})}
    made = trained.parts(
        recipe=recipe,
        devices=devices,
        precision=precision,
        count=100,
        on_gpus=True,
        **shape,
        **settings,
    )
    graph = step_graph(made, xla=xla)
    shapes = {tensor.name: tensor.shape for op in graph.get_operations() for tensor in op.outputs}
    return count(optimized(graph), shapes)


def step_graph(made: trained.Parts, *, xla: bool) -> Any:
    """Returns the FuncGraph of one iteration of the compiled loop; one replica is on GPU:0."""
    import tensorflow as tf

    from trainer.machine import devices
    from trainer.training.position import Start
    from trainer.training.step import Step, real_batches_per_step

    config, shape = made.config, made.data.shape
    batches = real_batches_per_step(config)
    rows = config.batch_size // made.devices.num_replicas
    images = tf.TensorSpec(
        [batches, rows, shape.size, shape.size, shape.channels], tf.uint8, name="images"
    )
    labels = tf.TensorSpec([batches, rows], tf.int32, name="labels")
    step = Step(config, made.variables, shape.classes, made.devices.num_replicas, xla)
    seen = tf.TensorSpec([], tf.int64, name="seen")

    def one_step(images: tf.Tensor, labels: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
        position = Start(seen, seen, seen, seen).after(config, 0)
        if made.devices.num_replicas == 1:
            return step(images, labels, position)
        return made.devices.run_and_sum(step, images, labels, position)

    traced = tf.function(one_step, autograph=False)
    with mock.patch.object(devices, "uses_gpus", return_value=True):  # it has forms for CPUs
        return traced.get_concrete_function(images, labels, seen).graph


def optimized(graph: Any) -> Any:
    """Returns a graph as a GraphDef in the form in which a GPU would run it."""
    from tensorflow.core.protobuf import config_pb2, device_properties_pb2, meta_graph_pb2
    from tensorflow.python.grappler import cluster, tf_optimizer

    meta = meta_graph_pb2.MetaGraphDef()
    meta.graph_def.CopyFrom(graph.as_graph_def())
    several = any("CPU:1" in node.device for node in meta.graph_def.node)
    for node in meta.graph_def.node:
        if several:  # the second replica stands for a GPU
            node.device = node.device.replace("CPU:1", "GPU:0")
    kept = [tensor.op.name for tensor in graph.outputs]
    kept += [operation.name for operation in graph.control_outputs]
    meta.collection_def["train_op"].node_list.value.extend(kept)
    properties = device_properties_pb2.DeviceProperties
    gpu = properties(
        type="GPU", vendor="NVIDIA", frequency=1500, num_cores=80, memory_size=16 << 30,
        environment={"architecture": "8.0", "cuda": "12050", "cudnn": "90000"},
    )  # fmt: skip
    cpu = properties(type="CPU", frequency=2000, num_cores=4, memory_size=16 << 30)
    named = device_properties_pb2.NamedDevice
    devices = [named(name=GPU, properties=gpu), named(name=CPU, properties=cpu)]
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    return tf_optimizer.OptimizeGraph(config, meta, cluster=cluster.Cluster(devices=devices))


def count(graph_def: Any, shapes: Mapping[str, Any]) -> Counts:
    """Counts the launches of a graph whose operations run on the GPU unless placed elsewhere.

    Args:
      graph_def: the graph.
      shapes: shapes of tensors by name, for those whose shape the graph itself does not know.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    operations: collections.Counter[str] = collections.Counter()
    edges, missing, collectives = [], [], 0
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            if tensor.shape.rank is None and tensor.name in shapes:
                tensor.set_shape(shapes[tensor.name])
    placed = {operation: _Placed(operation) for operation in graph.get_operations()}
    several = any("GPU:0" in operation.device for operation in placed)
    for operation, where in placed.items():
        if several and "GPU:0" not in operation.device:
            continue  # another replica's, or the host's
        collectives += _is_collective(operation.type)
        if where.lacks_kernel:
            missing.append(f"{operation.type} {operation.name}")
        if where.launches:
            operations[operation.type] += 1
        for index, tensor in enumerate(operation.inputs):
            producer = placed[tensor.op]
            if where.takes_from_host(index) and producer.returns_on_device(tensor.value_index):
                edges.append(f"{tensor.name} -> {operation.name}")
    return Counts(dict(operations.most_common()), tuple(edges), tuple(missing), collectives)


def _is_collective(kind: str) -> bool:
    return (
        kind.startswith(("Collective", "Nccl"))
        and "Initialize" not in kind
        and ("Group" not in kind)
    )


class _Placed:
    """Where an operation runs, and in which memory its inputs and outputs are.

    Attributes:
      lacks_kernel: whether it belongs on the device, which has no kernel for it.
      launches: whether the device runs something.
    """

    def __init__(self, operation: Any) -> None:
        import tensorflow as tf

        self._operation = operation
        # Here every variable is on the CPU, and so are the operations that use it.
        uses_variable = any(tensor.dtype == tf.resource for tensor in operation.inputs)
        on_cpu = "CPU" in operation.device and not uses_variable
        self._kernel = None if on_cpu else _kernel_of(operation)
        is_compiled = _is_compiled(operation)
        known = operation.type in ("Placeholder", "NoOp")
        self.lacks_kernel = not (on_cpu or self._kernel or is_compiled or known)
        self._host = set(self._kernel.host_memory_arg) if self._kernel else set()
        self._on_host = on_cpu or self.lacks_kernel
        updates = operation.type.startswith(UPDATES) and not self._on_host
        computes = not self._on_host and not all(
            self._is_host_output(index) for index in range(len(operation.outputs))
        )
        shares = operation.type in NO_LAUNCH or _shares_its_input(operation)
        self.launches = is_compiled or updates or (computes and not shares)

    def takes_from_host(self, index: int) -> bool:
        """Returns whether an input is read from host memory."""
        if self._operation.type in ("Placeholder", "NoOp") or _is_compiled(self._operation):
            return False
        return self._on_host or _argument(self._operation, index, "input_arg") in self._host

    def returns_on_device(self, index: int) -> bool:
        """Returns whether an output is computed into device memory."""
        if self._operation.type in ("Placeholder", "Const", "VarHandleOp"):
            return False
        return not self._on_host and not self._is_host_output(index)

    def _is_host_output(self, index: int) -> bool:
        import tensorflow as tf

        if self._operation.outputs[index].dtype in (tf.resource, tf.variant, tf.string):
            return True
        return _argument(self._operation, index, "output_arg") in self._host


def _is_compiled(operation: Any) -> bool:
    return bool(dict(operation.node_def.attr).get("_XlaMustCompile"))


def _kernel_of(operation: Any) -> Any:
    """Returns the device's kernel of an operation, or None."""
    attributes = operation.node_def.attr
    return next((each for each in _kernels(operation.type) if _fits(each, attributes)), None)


@functools.cache
def _kernels(kind: str) -> list[Any]:
    """Returns the device's kernels for a type of operation, the preferred ones first."""
    from tensorflow.python.framework import kernels

    known = kernels.get_registered_kernels_for_op(kind).kernel
    return sorted(
        (kernel for kernel in known if kernel.device_type in ("GPU", "DEFAULT")),
        key=lambda kernel: (kernel.device_type == "GPU", kernel.priority),
        reverse=True,
    )


def _fits(kernel: Any, attributes: Mapping[str, Any]) -> bool:
    # The layout optimizer asks for kernels in host memory by their label.
    if kernel.label != attributes["_kernel"].s.decode():
        return False
    for constraint in kernel.constraint:
        if constraint.name in attributes:
            value = attributes[constraint.name]
            types = list(value.list.type) or [value.type]
            if not set(types) <= set(constraint.allowed_values.list.type):
                return False
    return True


def _argument(operation: Any, index: int, kind: str) -> str:
    """Returns the name of the argument that an input or output belongs to."""
    attributes = operation.node_def.attr
    for argument in getattr(operation.op_def, kind):
        if argument.number_attr:
            index -= attributes[argument.number_attr].i
        elif argument.type_list_attr:
            index -= len(attributes[argument.type_list_attr].list.type)
        else:
            index -= 1
        if index < 0:
            return argument.name
    return ""


def _shares_its_input(operation: Any) -> bool:
    """Returns whether an operation returns parts of its input's buffer.

    TensorFlow's kernels do so along the first axis where every part is aligned.
    """
    values = {"Split": 1, "SplitV": 0, "Unpack": 0, "Slice": 0, "StridedSlice": 0}
    if operation.type not in values:
        return False
    source = operation.inputs[values[operation.type]]
    if source.shape.rank is None:
        return False
    row = (source.shape[1:].num_elements() or 0) * source.dtype.size
    if operation.type == "Unpack":
        return operation.get_attr("axis") == 0 and row % ALIGNMENT == 0
    if operation.type.startswith("Split"):
        axis = _constant(operation.inputs[0 if operation.type == "Split" else 2])
        sizes = [(tensor.shape[0] or 0) * row for tensor in operation.outputs]
        return axis == 0 and all(size % ALIGNMENT == 0 for size in sizes)
    begin, end = (_constant(tensor) for tensor in operation.inputs[1:3])
    if begin is None or end is None or any(begin[1:]):
        return False
    if len(source.shape) > 1:
        return len(begin) == 1 and row % ALIGNMENT == 0
    return begin[0] * row % ALIGNMENT == 0 and (
        end[0] * row % ALIGNMENT == 0 or end[0] == source.shape[0]
    )


def _constant(tensor: Any) -> Any:
    import tensorflow as tf

    return tf.get_static_value(tensor)


def ceiling(recipe: str, precision: str) -> int:
    """Returns the largest number of launches of a step on one replica without XLA."""
    return CEILINGS[recipe][PRECISIONS.index(precision)]


def rows_of(
    recipes: Sequence[str], precisions: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Counts]]:
    """Yields a row of the table and its counts for each case."""
    for recipe in recipes:
        cases = [(precision, False, 1) for precision in precisions]
        cases += [(precisions[0], True, 1), (precisions[0], False, 2)]
        for precision, xla, replicas in cases:
            case = dict(recipe=recipe, precision=precision, xla=xla, replicas=replicas)
            counts = harness.alone("benchmarks.launches:count_step", **case)
            yield (
                {
                    **case,
                    "launches": counts.launches,
                    "device_to_host": len(counts.device_to_host),
                    "without_kernel": len(counts.without_kernel),
                    "collectives": counts.collectives,
                },
                counts,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes results/launches.json."""
    from trainer.recipes import RECIPES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated recipes")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument(
        "--operations", action="store_true", help="list the launches by operation, write nothing"
    )
    given = parser.parse_args(arguments)
    rows = []
    for row, counts in rows_of(given.recipes.split(","), given.precisions.split(",")):
        rows.append(row)
        if given.operations:
            print(row)
            for operation, number in counts.operations.items():
                print(f"{number:6d}  {operation}")
            for line in (*counts.device_to_host, *counts.without_kernel):
                print(f"        {line}")
    if given.operations:
        harness.print_table(rows)
    else:
        harness.report("launches", rows)
    sys.exit(any(map(_is_too_much, rows)))


def _is_too_much(row: Mapping[str, Any]) -> bool:
    exceeds = row["launches"] > ceiling(row["recipe"], row["precision"])
    waits = row["device_to_host"] > 0 or row["without_kernel"] > 0
    return waits or (exceeds and row["replicas"] == 1)


if __name__ == "__main__":
    main()
