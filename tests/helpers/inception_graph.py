"""A small graph in the form of the Inception network."""

import numpy as np
import tensorflow as tf


def small_graph(features=5, classes=7, scaled=True) -> bytes:
    """Returns a frozen graph with the names and the old batch norm of the Inception graph."""
    with tf.Graph().as_default() as graph:
        jpeg = tf.compat.v1.placeholder(tf.float32, [None, None, 3], name="Cast")
        images = tf.expand_dims(jpeg, 0, name="ExpandDims")
        size = tf.constant([299, 299], name="ResizeBilinear/size")
        resized = tf.raw_ops.ResizeBilinear(images=images, size=size, name="ResizeBilinear")
        centred = tf.multiply(tf.subtract(resized, 128.0, name="Sub"), 1 / 128, name="Mul")
        draw = np.random.default_rng(0)
        kernel = tf.constant(draw.normal(size=[3, 3, 3, features]), tf.float32)
        conv = tf.nn.conv2d(centred, kernel, strides=149, padding="SAME", name="conv")
        pool = tf.nn.avg_pool2d(conv, 3, 3, "SAME", name="pool_3")
        flat = tf.reshape(pool, [1, features], name="pool_3/_reshape")  # one image at a time
        weights = tf.constant(draw.normal(size=[features, classes]), tf.float32)
        product = tf.matmul(flat, weights, name="softmax/logits/MatMul")
        bias = tf.ones([classes])
        tf.nn.softmax(tf.nn.bias_add(product, bias, name="softmax/logits"), name="softmax")
    graph_def = graph.as_graph_def(add_shapes=True)
    conv = next(node for node in graph_def.node if node.name == "conv")
    conv.name = "conv/before"
    normed = graph_def.node.add(name="conv", op="BatchNormWithGlobalNormalization")
    for name, value in (("mean", 0.1), ("var", 2.0), ("beta", 0.3), ("gamma", 1.5)):
        constant = graph_def.node.add(name=f"conv/{name}", op="Const")
        constant.attr["dtype"].type = tf.float32.as_datatype_enum
        tensor = tf.make_tensor_proto(np.full([features], value, np.float32))
        constant.attr["value"].tensor.CopyFrom(tensor)
    normed.input.extend(["conv/before", *(f"conv/{n}" for n in ("mean", "var", "beta", "gamma"))])
    normed.attr["T"].type = tf.float32.as_datatype_enum
    normed.attr["variance_epsilon"].f = 0.001
    normed.attr["scale_after_normalization"].b = scaled
    graph_def.versions.producer = 8  # later versions may not use that batch norm
    return graph_def.SerializeToString()
