"""The reference systems' networks in plain Keras, with the same layers as the recipes.

Each function maps the image side, channels and classes to a generator and a discriminator
whose output is a logit [N, 1]. Programs that need a probability append a sigmoid.
"""

import keras
from keras import layers


def dcgan_sigmoid(side: int, channels: int, classes: int) -> tuple[keras.Model, keras.Model]:
    """Returns networks of 5x5 kernels, with a norm (G) or a LeakyReLU (D) before each layer."""
    quarter = side // 4
    g = keras.Sequential([keras.Input([100]), layers.Dense(quarter * quarter * 128)])
    g.add(layers.Reshape([quarter, quarter, 128]))
    for filters, stride in ((128, 2), (64, 2), (32, 1), (channels, 1)):
        g.add(layers.BatchNormalization())
        g.add(layers.Activation("relu"))
        g.add(layers.Conv2DTranspose(filters, 5, strides=stride, padding="same"))
    g.add(layers.Activation("sigmoid"))
    d = keras.Sequential([keras.Input([side, side, channels])])
    for filters, stride in ((32, 2), (64, 2), (128, 2), (256, 1)):
        d.add(layers.LeakyReLU(0.2))
        d.add(layers.Conv2D(filters, 5, strides=stride, padding="same"))
    d.add(layers.Flatten())
    d.add(layers.Dense(1))
    return g, d


def mlp_small(side: int, channels: int, classes: int) -> tuple[keras.Model, keras.Model]:
    """Returns networks of dense layers; G has a LeakyReLU followed by a norm."""
    g = keras.Sequential([keras.Input([100])])
    for units in (256, 512, 1024):
        g.add(layers.Dense(units))
        g.add(layers.LeakyReLU(0.2))
        g.add(layers.BatchNormalization(momentum=0.8))
    g.add(layers.Dense(side * side * channels, activation="tanh"))
    g.add(layers.Reshape([side, side, channels]))
    return g, _dense_discriminator((512, 256), side, channels)


def mlp(side: int, channels: int, classes: int) -> tuple[keras.Model, keras.Model]:
    """Returns networks of dense layers; G has norms before each LeakyReLU but the first."""
    g = keras.Sequential([keras.Input([100]), layers.Dense(256), layers.LeakyReLU(0.2)])
    for units in (512, 1024):
        g.add(layers.Dense(units))
        g.add(layers.BatchNormalization())
        g.add(layers.LeakyReLU(0.2))
    g.add(layers.Dense(side * side * channels, activation="tanh"))
    g.add(layers.Reshape([side, side, channels]))
    return g, _dense_discriminator((1024, 512, 256), side, channels)


def _dense_discriminator(units: tuple[int, ...], side: int, channels: int) -> keras.Model:
    d = keras.Sequential([keras.Input([side, side, channels]), layers.Flatten()])
    for count in units:
        d.add(layers.Dense(count))
        d.add(layers.LeakyReLU(0.2))
    d.add(layers.Dense(1))
    return d


def dcgan_kstep(side: int, channels: int, classes: int) -> tuple[keras.Model, keras.Model]:
    """Returns networks of 3x3 kernels without norms, with dropout in D."""
    quarter = side // 4
    g = keras.Sequential([keras.Input([150]), layers.Dense(quarter * quarter * 256)])
    g.add(layers.Reshape([quarter, quarter, 256]))
    for filters in (256, 128):
        g.add(layers.Conv2DTranspose(filters, 3, strides=2, padding="same"))
        g.add(layers.LeakyReLU(0.3))
    g.add(layers.Conv2DTranspose(channels, 3, padding="same", activation="sigmoid"))
    d = keras.Sequential([keras.Input([side, side, channels])])
    for filters in (256, 128):
        d.add(layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu"))
    d.add(layers.Flatten())
    d.add(layers.Dense(64, activation="relu"))
    d.add(layers.Dropout(0.2))
    d.add(layers.Dense(1))
    return g, d


def cgan(side: int, channels: int, classes: int) -> tuple[keras.Model, keras.Model]:
    """Returns networks of 3x3 kernels whose inputs are multiplied by embeddings of the label."""
    quarter, pixels = side // 4, side * side * channels
    latents, labels = keras.Input([100]), keras.Input([], dtype="int32")
    x = layers.Multiply()([latents, layers.Embedding(classes, 100)(labels)])
    x = layers.Reshape([quarter, quarter, 256])(layers.Dense(quarter * quarter * 256)(x))
    for filters, stride in ((128, 2), (64, 1)):
        x = layers.Conv2DTranspose(filters, 3, strides=stride, padding="same")(x)
        x = layers.LeakyReLU(0.01)(layers.BatchNormalization()(x))
    x = layers.Conv2DTranspose(channels, 3, strides=2, padding="same", activation="tanh")(x)
    g = keras.Model([latents, labels], x)

    images, labels = keras.Input([side, side, channels]), keras.Input([], dtype="int32")
    embedding = layers.Reshape([side, side, channels])(layers.Embedding(classes, pixels)(labels))
    x = layers.Multiply()([images, embedding])
    for filters in (32, 64, 128):
        x = layers.Conv2D(filters, 3, strides=2, padding="same")(x)
        x = x if filters == 32 else layers.BatchNormalization()(x)
        x = layers.LeakyReLU(0.01)(x)
    return g, keras.Model([images, labels], layers.Dense(1)(layers.Flatten()(x)))
