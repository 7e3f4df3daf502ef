"""Many variables in one buffer, so that one operation updates all of them."""

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

ALIGNMENT = 16  # floats; TensorFlow shares parts of a buffer that start and end at 64 bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Buffer:
    """The values of float32 variables, one after another, in a variable of one dimension.

    Updating each variable of a network by itself takes several kernels per variable, and their
    launches, not their arithmetic, would bound a step on a GPU.  The buffer is valid between
    `load` and `store`, which are called around many steps.  All methods are called on a replica.

    Attributes:
      variables: the variables.
      flat: [size] float32, with zeros where a variable does not end at a multiple of ALIGNMENT.
    """

    variables: tuple[keras.Variable, ...]
    flat: tf.Variable

    @classmethod
    def create(cls, variables: Sequence[keras.Variable], name: str) -> "Buffer":
        """Creates the buffer.  Call it inside the scope of the replicas."""
        size = sum(_padded(variable) for variable in variables)
        flat = tf.Variable(tf.zeros([size]), trainable=False, name=name)
        return cls(tuple(variables), flat)

    def load(self) -> None:
        """Copies the variables into the buffer."""
        self.assign([variable.value for variable in self.variables])

    def store(self) -> None:
        """Copies the buffer into the variables."""
        for variable, part in zip(self.variables, self.parts(), strict=True):
            tf.raw_ops.AssignVariableOp(resource=variable.value.handle, value=part)

    def parts(self) -> list[tf.Tensor]:
        """Returns the value of each variable, in its shape."""
        if not self.variables:
            return []
        sizes = [_padded(variable) for variable in self.variables]
        parts = []
        for variable, part in zip(self.variables, tf.split(self.value(), sizes), strict=True):
            count = variable.shape.num_elements()
            part = part if count == part.shape[0] else part[:count]
            parts.append(tf.reshape(part, variable.shape))
        return parts

    def join(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns tensors of the variables' shapes as a buffer, [size] float32."""
        pieces = []
        for variable, tensor in zip(self.variables, tensors, strict=True):
            pieces.append(tf.reshape(tensor, [-1]))
            if missing := _padded(variable) - variable.shape.num_elements():
                pieces.append(tf.zeros([missing]))
        return tf.concat(pieces, 0) if pieces else tf.zeros([0])

    def assign(self, tensors: Sequence[tf.Tensor]) -> None:
        """Replaces the value of every variable."""
        if self.variables:
            self.replace(self.join(tensors))

    def replace(self, flat: tf.Tensor) -> None:
        """Replaces the whole buffer."""
        tf.raw_ops.AssignVariableOp(resource=self.flat.handle, value=flat)

    def move_towards(self, flat: tf.Tensor, share: tf.Tensor) -> None:
        """Moves every value by a share of its distance to that of another buffer."""
        tf.raw_ops.ResourceApplyGradientDescent(
            var=self.flat.handle, alpha=share, delta=self.value() - flat
        )

    def value(self) -> tf.Tensor:
        """Returns the buffer's present value, [size] float32."""
        return tf.convert_to_tensor(self.flat)


def _padded(variable: keras.Variable) -> int:
    return -(-variable.shape.num_elements() // ALIGNMENT) * ALIGNMENT
