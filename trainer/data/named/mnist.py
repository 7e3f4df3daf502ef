"""MNIST: handwritten digits."""

from trainer.data.named.mnist_files import npz_or_idx_reader
from trainer.data.named.source import Source

SOURCE = Source(
    image_size=28,
    class_names=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    read=npz_or_idx_reader("mnist.npz", ("mnist", "MNIST", ".")),
    origin="keras.datasets.mnist (http://yann.lecun.com/exdb/mnist)",
    files="mnist.npz, or train- and t10k- images-idx3-ubyte.gz and labels-idx1-ubyte.gz",
    keras_name="mnist",
    bucket_patterns=("mnist.npz", "*-ubyte.gz"),
)
