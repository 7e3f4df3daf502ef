"""The Inception network of 2015, by whose features FIDs are published.

Heusel et al. (arXiv:1706.08500) and Salimans et al. (arXiv:1606.03498) both take it from
one frozen graph, so numbers by this file, on as many images, compare with published ones.
Ports of its weights to other frameworks, and other ways to resize, do not.
"""

import functools
import hashlib
import tarfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import tensorflow as tf

from trainer.errors import UsageError
from trainer.evaluation.features import FeatureNetwork

GRAPH = "classify_image_graph_def.pb"
ARCHIVE = "inception-2015-12-05.tgz"
ORIGIN = f"http://download.tensorflow.org/models/image/imagenet/{ARCHIVE}"

IMAGES = "ExpandDims:0"  # float32 [N, H, W, 3], 0 to 255; the graph resizes to 299 x 299
FEATURES = "pool_3:0"  # [N, 1, 1, 2048]
OLD_NORM = "BatchNormWithGlobalNormalization"
LOGITS = "softmax/logits/MatMul"  # its second input is [2048, 1008]


def load(path: str, shown: str = "") -> FeatureNetwork:
    """Reads the network from `path`: the graph, or the archive that it comes in.

    Args:
      path: on this machine.
      shown: what the user gave, if that was something else.

    Raises:
      UsageError: if there is no such file, or it is another.
    """
    shown = shown or path
    content = _read(path, shown)
    try:
        judge, size = _import(content)
    except (ValueError, KeyError, TypeError, IndexError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(_wrong(shown, f"is not that network ({reason})")) from None
    digest = hashlib.sha256(content).hexdigest()[:16]
    return FeatureNetwork("inception", digest, judge, {"path": shown, "size": size})


def _wrong(path: str, what: str) -> str:
    return f"--inception_path={path} {what}: give {GRAPH}, or {ARCHIVE} from {ORIGIN}."


def _read(path: str, shown: str) -> bytes:
    """The bytes of the graph.

    Raises:
      UsageError: if it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UsageError(_wrong(shown, "does not exist")) from None
    except OSError as error:
        raise UsageError(_wrong(shown, f"cannot be read ({error.strerror})")) from None
    if not path.endswith((".tgz", ".tar.gz", ".tar")):
        return content
    try:
        with tarfile.open(fileobj=BytesIO(content)) as archive:
            for member in archive:
                if member.isfile() and member.name.rpartition("/")[2] == GRAPH:
                    return archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UsageError(_wrong(shown, f"cannot be unpacked ({error})")) from None
    raise UsageError(_wrong(shown, f"holds no {GRAPH}"))


def _import(content: bytes) -> tuple[Callable, int]:
    """What judges images by the graph in `content`, and the number of its features.

    Raises:
      ValueError, KeyError, OpError: if it is no graph or lacks what is looked for.
    """
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(content)
    except Exception:  # of the protobuf package, which is not ours to import
        raise ValueError("no TensorFlow graph") from None
    known = {node.name for node in graph_def.node}
    for name in (IMAGES, FEATURES, LOGITS):
        if name.partition(":")[0] not in known:
            raise ValueError(f"it has no {name.partition(':')[0]}")
    _modernise(graph_def)

    def body(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Pool features and logits of images, by the graph's own tensors."""
        pool, product = tf.graph_util.import_graph_def(
            graph_def,
            input_map={IMAGES: images},
            return_elements=[FEATURES, LOGITS],
            name="",
        )
        features = tf.reshape(pool, [-1, pool.shape[-1]])
        # Without the bias, as the Inception Score was published.
        return features, tf.matmul(features, product.inputs[1])

    signature = [tf.TensorSpec([None, None, None, 3], tf.float32)]
    wrapped = tf.compat.v1.wrap_function(body, signature)
    return functools.partial(_judge, wrapped), int(wrapped.outputs[0].shape[-1])


def _modernise(graph_def: tf.compat.v1.GraphDef) -> None:
    """Changes in a graph of 2015 what TensorFlow no longer runs; it computes the same."""
    for node in list(graph_def.node):
        # Shapes noted for one image at a time; here they come in batches.
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


def _judge(wrapped: Callable, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Features and logits of images uint8 [N, H, W, 1 or 3]; gray ones as three channels."""
    pixels = tf.cast(images, tf.float32)
    if pixels.shape[-1] == 1:
        pixels = tf.repeat(pixels, 3, axis=-1)
    features, logits = wrapped(pixels)
    return features, logits
