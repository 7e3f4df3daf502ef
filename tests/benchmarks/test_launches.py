"""Stands in for a GPU: counts what a step of each recipe would launch on one."""

import keras
import pytest
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

from benchmarks import launches
from trainer.recipes import RECIPES

FORMATS = ("float32", "bfloat16", "float16")
# Each recipe in one number format; `python -m benchmarks.launches` checks all combinations.
CASES = [(recipe, FORMATS[number % len(FORMATS)]) for number, recipe in enumerate(sorted(RECIPES))]
# The five updates of this discriminator are alike, so that one of them is counted.
FEWER = {"sngan": ({"d_steps": 1}, 605)}  # settings, and the largest number of launches


@pytest.mark.parametrize(("recipe", "precision"), CASES)
def test_steps_run_on_the_device_and_never_wait_for_it(recipe, precision):
    settings, limit = FEWER.get(recipe, ({}, launches.ceiling(recipe, precision)))
    policy = keras.config.dtype_policy()
    try:
        counts = launches.count_step(recipe, precision=precision, **settings)
    finally:
        keras.config.set_dtype_policy(policy)
    assert counts.without_kernel == ()
    assert counts.device_to_host == ()
    assert counts.collectives == 0
    assert 0 < counts.launches <= limit


def test_a_step_that_xla_compiles_is_one_program_with_its_random_numbers():
    counts = launches.count_step("mlp", xla=True)
    assert counts.operations == {"StatelessRandomNormalV2": 1, "StatefulPartitionedCall": 1}
    assert counts.device_to_host == counts.without_kernel == ()


def graph_of(function):
    graph = tf.function(function, autograph=False).get_concrete_function().graph
    shapes = {tensor.name: tensor.shape for op in graph.get_operations() for tensor in op.outputs}
    return launches.count(launches.optimized(graph), shapes)


def test_branches_on_values_of_the_device_are_found():
    values = tf.Variable(tf.ones([64]))

    def with_branch():
        return tf.cond(tf.reduce_sum(values) > 0, lambda: values * 2.0, lambda: values * 3.0)

    assert graph_of(with_branch).device_to_host
    assert not graph_of(lambda: tf.where(tf.reduce_sum(values) > 0, 2.0, 3.0)).device_to_host


def test_operations_without_a_kernel_are_found():
    values = tf.Variable(tf.ones([64]))
    counts = graph_of(lambda: tf.numpy_function(abs, [values + 1.0], tf.float32))
    assert counts.without_kernel or counts.device_to_host


@pytest.mark.parametrize("label", ["", "host"])
def test_kernels_that_are_asked_for_by_label_are_found(label):
    """The layout optimizer permutes shapes in host memory, as one label asks for."""
    with tf.Graph().as_default() as graph:
        shape = tf.raw_ops.DataFormatVecPermute(x=tf.shape(tf.ones([2, 3, 4, 5])))
        shape.op._set_attr("_kernel", attr_value_pb2.AttrValue(s=label.encode()))
        tf.reshape(tf.sin(tf.ones([120])), shape)
    counts = launches.count(graph.as_graph_def(), {})
    assert (len(counts.device_to_host), counts.launches) == ((0, 1) if label else (1, 2))


def test_launches_are_counted_and_shared_buffers_are_not():
    values = tf.Variable(tf.ones([64]))

    def work():
        halves = tf.split(values, 2)  # parts of the buffer
        return tf.reshape(tf.sin(halves[0]) + halves[1], [4, 8])

    assert graph_of(work).operations == {"Sin": 1, "AddV2": 1}
