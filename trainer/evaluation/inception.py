"""The Inception network of 2015, whose features published FIDs are computed with.

Heusel et al. (arXiv:1706.08500) and Salimans et al. (arXiv:1606.03498) both use the same frozen
graph.  Results computed with this graph on the same number of images are therefore comparable
with published ones.  Results of ports to other frameworks or of other ways to resize are not.
"""

import functools
import hashlib
import logging
import tarfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import tensorflow as tf

from trainer.errors import UsageError
from trainer.evaluation.features import FeatureNetwork

log = logging.getLogger(__name__)

GRAPH = "classify_image_graph_def.pb"
ARCHIVE = "inception-2015-12-05.tgz"
ORIGIN = f"https://download.tensorflow.org/models/image/imagenet/{ARCHIVE}"

IMAGES = "ExpandDims:0"  # float32 [N, H, W, 3], 0 to 255; the graph resizes to 299 x 299
FEATURES = "pool_3:0"  # [N, 1, 1, 2048]
OLD_NORM = "BatchNormWithGlobalNormalization"
LOGITS = "softmax/logits/MatMul"  # its second input is [2048, 1008]


def load(path: str, shown: str = "", sha256: str = "") -> FeatureNetwork:
    """Loads the network from a file: the graph, or the archive that contains it.

    Args:
      path: path of the file on this machine.
      shown: path to name in messages, if the user gave another, such as a bucket's.
      sha256: SHA-256 of the graph in hexadecimal digits, which must match; "" for any.

    Raises:
      UsageError: if the file cannot be read, does not contain this network or does not match.
    """
    shown = shown or path
    content = _read(path, shown)
    found = hashlib.sha256(content).hexdigest()
    if sha256 and sha256.lower() != found:
        raise UsageError(
            f"--inception_sha256={sha256}: the graph in --inception_path={shown} has the SHA-256 "
            f"{found}. Use the file that was meant, or correct the flag."
        )
    try:
        apply, size = _import(content)
    except (ValueError, KeyError, TypeError, IndexError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(_message(shown, f"is not the Inception network ({reason})")) from None
    log.info("Inception network in %s: SHA-256 %s", shown, found)
    return FeatureNetwork(
        "inception", found[:16], apply, {"path": shown, "size": size, "sha256": found}
    )


def _message(path: str, problem: str) -> str:
    return f"--inception_path={path} {problem}. Use {GRAPH}, or {ARCHIVE} from {ORIGIN}."


def _read(path: str, shown: str) -> bytes:
    """Returns the bytes of the graph in a file or archive.

    Raises:
      UsageError: if the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UsageError(_message(shown, "does not exist")) from None
    except OSError as error:
        raise UsageError(_message(shown, f"cannot be read ({error.strerror})")) from None
    if not path.endswith((".tgz", ".tar.gz", ".tar")):
        return content
    try:
        with tarfile.open(fileobj=BytesIO(content)) as archive:
            for member in archive:
                if member.isfile() and member.name.rpartition("/")[2] == GRAPH:
                    return archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UsageError(_message(shown, f"cannot be unpacked ({error})")) from None
    raise UsageError(_message(shown, f"does not contain {GRAPH}"))


def _import(content: bytes) -> tuple[Callable, int]:
    """Returns a function that applies the graph in `content`, and the number of features.

    Raises:
      ValueError, KeyError, OpError: if `content` is not a graph with the expected nodes.
    """
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(content)
    except Exception:  # the error class belongs to protobuf, which is not a direct dependency
        raise ValueError("not a TensorFlow graph") from None
    node_names = {node.name for node in graph_def.node}
    for name in (IMAGES, FEATURES, LOGITS):
        if name.partition(":")[0] not in node_names:
            raise ValueError(f"it has no node {name.partition(':')[0]}")
    _modernise(graph_def)

    def body(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the pool features and logits of images, from tensors of the graph."""
        pool, product = tf.graph_util.import_graph_def(
            graph_def,
            input_map={IMAGES: images},
            return_elements=[FEATURES, LOGITS],
            name="",
        )
        features = tf.reshape(pool, [-1, pool.shape[-1]])
        # Without the bias, as for published Inception Scores.
        return features, tf.matmul(features, product.inputs[1])

    signature = [tf.TensorSpec([None, None, None, 3], tf.float32)]
    wrapped = tf.compat.v1.wrap_function(body, signature)
    return functools.partial(_apply, wrapped), int(wrapped.outputs[0].shape[-1])


def _modernise(graph_def: tf.compat.v1.GraphDef) -> None:
    """Replaces parts of the graph that TensorFlow no longer runs by equivalent ones."""
    for node in list(graph_def.node):
        # These shapes are for a single image, but the graph is applied to batches.
        node.attr.pop("_output_shapes", None)
        if node.op != OLD_NORM:
            continue
        images, mean, variance, shift, scale = node.input
        epsilon = node.attr["variance_epsilon"].f
        if not node.attr["scale_after_normalization"].b:
            ones = graph_def.node.add(name=f"{node.name}/ones", op="OnesLike", input=[scale])
            ones.attr["T"].CopyFrom(node.attr["T"])
            scale = ones.name
        node.op = "FusedBatchNorm"
        node.input[:] = [images, scale, shift, mean, variance]
        for name in ("variance_epsilon", "scale_after_normalization"):
            del node.attr[name]
        node.attr["epsilon"].f = epsilon
        node.attr["is_training"].b = False


def _apply(wrapped: Callable, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the features and logits of images uint8 [N, H, W, 1 or 3].

    The channel of grayscale images is repeated three times.
    """
    pixels = tf.cast(images, tf.float32)
    if pixels.shape[-1] == 1:
        pixels = tf.repeat(pixels, 3, axis=-1)
    features, logits = wrapped(pixels)
    return features, logits
