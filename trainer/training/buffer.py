"""Many variables in one buffer, so that one operation updates all of them."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

# Elements.  TensorFlow shares parts of a buffer that start and end at 64 bytes, which are 32 values
# in half precision.
ALIGNMENT = 32


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
            assign_own(variable.value, part)

    def places(self) -> dict[int, tuple[int, int]]:
        """Returns by each variable's id where it begins and ends in the buffer, with its zeros."""
        ends = list(itertools.accumulate(map(_padded, self.variables)))
        pairs = zip([0, *ends], ends, strict=False)
        return {id(v): pair for v, pair in zip(self.variables, pairs, strict=True)}

    def parts(self, flat: tf.Tensor | None = None) -> list[tf.Tensor]:
        """Returns the value of each variable, in its shape.

        Args:
          flat: the value of the buffer, [size] in any number format; None for its present value.
        """
        if not self.variables:
            return []
        flat = self.value() if flat is None else flat
        sizes = [_padded(variable) for variable in self.variables]
        parts = []
        for variable, part in zip(self.variables, tf.split(flat, sizes), strict=True):
            count = variable.shape.num_elements()
            part = part if count == part.shape[0] else part[:count]
            parts.append(tf.reshape(part, variable.shape))
        return parts

    def join(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns tensors of the variables' shapes as a buffer, [size] float32."""
        return self.join_sum([tensors])

    def join_sum(self, groups: Sequence[Sequence[tf.Tensor | None]]) -> tf.Tensor:
        """Returns the sum of groups of tensors as a buffer, [size] float32.

        Args:
          groups: in each group a tensor of the shape of each variable, or None for zeros.  Some may
            be in half precision.
        """
        if not self.variables:
            return tf.zeros([0])
        if len(self.variables) == 1:  # nothing to join
            given = [tensor for (tensor,) in groups if tensor is not None]
            if given:
                total = tf.add_n([tf.cast(tensor, tf.float32) for tensor in given])
                return self._joined([[total]], tf.float32)
        # They are joined first, because each sum or cast of a tensor takes a kernel launch.
        dtypes = {tensor.dtype for group in groups for tensor in group if tensor is not None}
        terms: list[tf.Tensor] = []
        for dtype in sorted(dtypes or {tf.float32}, key=str):
            joined = tf.cast(self._joined(groups, dtype), tf.float32)
            terms += tf.split(joined, len(groups)) if len(groups) > 1 else [joined]
        return tf.add_n(terms)

    def _joined(self, groups: Sequence[Sequence[tf.Tensor | None]], dtype: tf.DType) -> tf.Tensor:
        """Returns groups one after another, with zeros for tensors of other number formats."""
        pieces, zeros = [], 0
        for group in groups:
            for variable, tensor in zip(self.variables, group, strict=True):
                size = _padded(variable)
                if tensor is None or tensor.dtype != dtype:
                    zeros += size
                    continue
                if zeros:
                    pieces.append(tf.zeros([zeros], dtype))
                pieces.append(tf.reshape(tensor, [-1]))
                zeros = size - variable.shape.num_elements()
        if zeros:
            pieces.append(tf.zeros([zeros], dtype))
        return tf.concat(pieces, 0)

    def assign(self, tensors: Sequence[tf.Tensor]) -> None:
        """Replaces the value of every variable."""
        if self.variables:
            self.replace(self.join(tensors))

    def replace(self, flat: tf.Tensor) -> None:
        """Replaces the whole buffer."""
        assign_own(self.flat, flat)

    def move_towards(self, flat: tf.Tensor, share: tf.Tensor) -> None:
        """Moves every value by a share of its distance to that of another buffer."""
        tf.raw_ops.ResourceApplyGradientDescent(
            var=self.flat.handle, alpha=share, delta=self.value() - flat
        )

    def value(self) -> tf.Tensor:
        """Returns the buffer's present value, [size] float32."""
        return tf.convert_to_tensor(self.flat)


@dataclasses.dataclass(frozen=True, eq=False)
class Buffers:
    """Variables in one buffer, or in several so that their updates can run side by side.

    Attributes:
      each: the buffers.
    """

    each: tuple[Buffer, ...]

    @classmethod
    def create(
        cls, variables: Sequence[keras.Variable], name: str, size: int | None = None
    ) -> "Buffers":
        """Creates the buffers.  Call it inside the scope of the replicas.

        Args:
          variables: the variables.
          name: name of the buffers.
          size: number of elements from which a variable has a buffer of its own; the smaller ones
            share the last one.  None for a single buffer.
        """
        small = [variable for variable in variables if size is None or _padded(variable) < size]
        groups = [
            [variable] for variable in variables if size is not None and _padded(variable) >= size
        ]
        if small or not groups:
            groups.append(small)
        return cls(tuple(Buffer.create(group, name) for group in groups))

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """All variables, in the order of the buffers."""
        return tuple(variable for buffer in self.each for variable in buffer.variables)

    def load(self) -> None:
        """Copies the variables into the buffers."""
        for buffer in self.each:
            buffer.load()

    def store(self) -> None:
        """Copies the buffers into the variables."""
        for buffer in self.each:
            buffer.store()

    def places(self) -> dict[int, tuple[int, int]]:
        """Returns where the variables of a single buffer are, see `Buffer.places`; else nothing."""
        return self.each[0].places() if len(self.each) == 1 else {}

    def parts(self, flats: Sequence[tf.Tensor] | None = None) -> list[tf.Tensor]:
        """Returns the value of each variable, in its shape.

        Args:
          flats: the value of each buffer, [size] in any number format; None for its present value.
        """
        flats = self.values() if flats is None else flats
        pairs = zip(self.each, flats, strict=True)
        return [part for buffer, flat in pairs for part in buffer.parts(flat)]

    def join_sum(self, groups: Sequence[Sequence[tf.Tensor | None]]) -> list[tf.Tensor]:
        """Returns the sum of groups of tensors for each buffer; see `Buffer.join_sum`."""
        return [
            buffer.join_sum([group[begin:end] for group in groups])
            for buffer, begin, end in self._ranges()
        ]

    def assign(self, tensors: Sequence[tf.Tensor]) -> None:
        """Replaces the value of every variable."""
        for buffer, begin, end in self._ranges():
            buffer.assign(tensors[begin:end])

    def move_towards(self, flats: Sequence[tf.Tensor], share: tf.Tensor) -> None:
        """Moves every value by a share of its distance to that of other buffers."""
        for buffer, flat in zip(self.each, flats, strict=True):
            buffer.move_towards(flat, share)

    def values(self) -> list[tf.Tensor]:
        """Returns the present value of each buffer, [size] float32."""
        return [buffer.value() for buffer in self.each]

    def _ranges(self) -> Iterator[tuple[Buffer, int, int]]:
        """Yields each buffer with the numbers of its first and last variable, as a range."""
        begin = 0
        for buffer in self.each:
            yield buffer, begin, begin + len(buffer.variables)
            begin += len(buffer.variables)


def assign_own(variable: tf.Variable, value: tf.Tensor) -> None:
    """Assigns a value to this replica's copy of a variable.

    The replicas must compute the same value.  Unlike `variable.assign`, they do not exchange it.
    """
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def _padded(variable: keras.Variable) -> int:
    return -(-variable.shape.num_elements() // ALIGNMENT) * ALIGNMENT
