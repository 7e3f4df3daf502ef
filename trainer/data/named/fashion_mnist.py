"""Fashion-MNIST: photographs of clothes."""

from trainer.data.named.mnist_files import npz_or_idx_reader
from trainer.data.named.source import Source

SOURCE = Source(
    image_size=28,
    class_names=(
        "top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    ),
    read=npz_or_idx_reader("fashion_mnist.npz", ("fashion-mnist", "fashion_mnist", ".")),
    origin="keras.datasets.fashion_mnist (https://github.com/zalandoresearch/fashion-mnist)",
    files="fashion-mnist/ with train- and t10k- images-idx3-ubyte.gz and labels-idx1-ubyte.gz",
    keras_name="fashion_mnist",
    bucket_patterns=("fashion_mnist.npz", "*-ubyte.gz"),
)
