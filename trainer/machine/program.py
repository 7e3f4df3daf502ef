"""Compiles a function with XLA into one program, with parts that stay outside of it."""

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_tracing = threading.local()  # each replica is traced in its own thread
_programs: weakref.WeakKeyDictionary[tf.Graph, list[tf.Graph]] = weakref.WeakKeyDictionary()


def call_compiled(function: Callable[..., tf.Tensor], *args: tf.Tensor) -> tf.Tensor:
    """Returns `function(*args)`, computed by one program that XLA compiles.

    Call it while a graph is traced.  The program receives the tensors that the function takes from
    outside, and what it makes inside an `outside` block.
    """

    def traced(*args: tf.Tensor) -> tf.Tensor:
        with _calling_from(caller):
            return function(*args)

    caller = tf.compat.v1.get_default_graph()
    program = tf.function(traced, jit_compile=True, autograph=False).get_concrete_function(*args)
    _programs.setdefault(caller, []).append(program.graph)
    return program(*args)


def graphs_of(caller: tf.Graph) -> list[tf.Graph]:
    """Returns the graphs of the programs that a graph calls."""
    return _programs.get(caller, [])


def outside() -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which operations run outside of the program that is traced.

    They may only use numbers and tensors from outside.  Without a program, it changes nothing.
    """
    caller = getattr(_tracing, "caller", None)
    return contextlib.nullcontext() if caller is None else _called_by(caller)


def is_traced() -> bool:
    """Returns whether a program is traced, and the caller is not in an `outside` block."""
    return getattr(_tracing, "caller", None) is not None


@contextlib.contextmanager
def _calling_from(caller: tf.Graph | None) -> Any:
    before = getattr(_tracing, "caller", None)
    _tracing.caller = caller
    try:
        yield
    finally:
        _tracing.caller = before


@contextlib.contextmanager
def _called_by(caller: tf.Graph) -> Any:
    with _calling_from(None), caller.as_default():
        yield
