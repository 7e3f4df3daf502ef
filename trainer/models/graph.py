"""The path of a network from its main input to its output, and the layers frozen on it."""

import keras

from trainer.errors import UsageError


def main_path(network: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers that depend on the first input, in the order of computation.

    The first input is that of the latent vectors or of the images.  Layers that see nothing but
    the labels, such as embeddings, are not on the path.
    """
    reached = {id(network.inputs[0])}
    path = []
    for operation in getattr(network, "operations", network.layers):
        if isinstance(operation, keras.layers.InputLayer):
            continue
        if any(id(tensor) in reached for tensor in keras.tree.flatten(operation.input)):
            reached.update(id(tensor) for tensor in keras.tree.flatten(operation.output))
            if isinstance(operation, keras.layers.Layer):
                path.append(operation)
    return path


def freeze(network: keras.Model, count: int) -> None:
    """Excludes the first weight layers of a discriminator, and their norms, from training.

    A weight layer has a trainable weight of two or more dimensions, as convolutions and fully
    connected layers do.  The first one is next to the image.  Batch norms still collect their
    statistics, and the power iterations of spectral norms continue.

    FreezeD: Mo et al., arXiv:2002.10964.

    Args:
      network: the discriminator, before its optimizer is built.
      count: number of weight layers to freeze.

    Raises:
      UsageError: if no weight layer would be left to train.
    """
    if not count:
        return
    path = main_path(network)
    starts = [
        number
        for number, layer in enumerate(path)
        if any(len(weight.shape) >= 2 for weight in layer.trainable_weights)
    ]
    if count >= len(starts):
        raise UsageError(
            f"--d_freeze_layers={count} is too large: the discriminator has {len(starts)} weight "
            "layers, of which the last must be trained. Give at most "
            f"{max(0, len(starts) - 1)}."
        )
    for layer in path[: starts[count]]:
        layer.trainable = False
