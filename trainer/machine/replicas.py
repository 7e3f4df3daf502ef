"""Devices, replicas, number formats: the only module that knows tf.distribute."""

import contextlib
import dataclasses
import faulthandler
import functools
import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

import keras
import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.errors import PeerError, PeerLostError, UsageError
from trainer.machine import devices
from trainer.machine.cluster import Cluster

PEER_WORDS = re.compile(r"abort|unavailable|heartbeat|connection|socket|peer", re.I)
PEER_LOST = (  # what a collective operation says once a peer has gone
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The replicas that carry a run, with one code path for one or many.

    Attributes:
      strategy: TensorFlow's strategy over the chosen devices.
      devices: the names of this machine's, such as "GPU:0".
      precision: "float32", "bfloat16" or "float16".
      deterministic: whether operations repeat bit for bit.
      workers: machines that carry the run.
      worker: the number of this one.
    """

    strategy: tf.distribute.Strategy
    devices: tuple[str, ...]
    precision: str
    deterministic: bool
    workers: int = 1
    worker: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether what this process writes stays."""
        return self.worker == 0

    @property
    def is_on_gpus(self) -> bool:
        """Whether its replicas are GPUs."""
        return self.devices[0].startswith("GPU")

    @property
    def num_replicas(self) -> int:
        """Replicas over all machines."""
        return self.strategy.num_replicas_in_sync

    def scope(self) -> Any:
        """The context in which variables are made, one copy per replica."""
        return self.strategy.scope()

    def run(self, function: Callable[..., tf.Tensor], *args: Any) -> tf.Tensor:
        """Calls `function` on every replica and sums what they return."""
        values = self.strategy.run(function, args=args)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    @property
    def replicas_here(self) -> int:
        """Replicas that `on_each_here` calls on."""
        return len(self.devices) if self.workers == 1 else 1

    def on_each_here(self, function: Callable[[Any], tf.Tensor]) -> list[tf.Tensor]:
        """What `function` returns for the numbers of the replicas here, each on its own.

        Of several machines one alone can call on one replica alone.
        """
        if self.replicas_here == 1:
            return [function(0)]
        values = self.strategy.run(lambda: function(replica_index()))
        return list(self.strategy.experimental_local_results(values))

    def distribute(self, make: Callable[[range], tf.data.Dataset]) -> Any:
        """An iterator over `make(replicas)`, one element per replica and step.

        `make` gets the range of replicas that this process feeds.
        """
        if self.devices == ("CPU:0",) and self.workers == 1:
            return iter(make(range(1)))  # a strategy's iterator takes two to three times as long

        def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
            count = context.num_replicas_in_sync // context.num_input_pipelines
            first = context.input_pipeline_id * count
            with tf.device("CPU:0"):
                return make(range(first, first + count))

        return iter(self.strategy.distribute_datasets_from_function(pipeline))

    @contextlib.contextmanager
    def peers_watched(self) -> Iterator[None]:
        """Turns what TensorFlow raises in a block once a peer is lost into a PeerLostError."""
        try:
            yield
        except PEER_LOST as error:
            if self.workers == 1:
                raise
            # TensorFlow's first line says only where; what happened stands further down.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in lines if PEER_WORDS.search(line)), (lines or [""])[-1])
            raise PeerLostError(
                f"Stopped: another worker was lost ({type(error).__name__}: {reason[:200]}). The "
                "same command goes on from the last checkpoint."
            ) from error

    def agree(self, count: int, stop: bool) -> tuple[int, bool]:
        """The chief's count, and whether any worker says stop.

        Every worker calls this at the same time.
        """
        if self.workers == 1:
            return count, stop
        mine = [count if self.is_chief else 0, int(stop)]
        chief_count, stops = self._sum_over_workers(np.array(mine, np.int64))
        return int(chief_count), bool(stops)

    def take_from_chief(self, variables: Iterable[tf.Variable]) -> None:
        """Gives variables the chief's values, on every worker at the same time."""
        if self.workers == 1:
            return
        by_type: dict[tf.DType, list[tf.Variable]] = {}
        for variable in variables:
            by_type.setdefault(variable.dtype, []).append(variable)
        for same in by_type.values():  # one message each: a transfer costs more than a copy
            flat = np.concatenate([variable.numpy().ravel() for variable in same])
            total = self._sum_over_workers(flat if self.is_chief else np.zeros_like(flat))
            ends = np.cumsum([variable.shape.num_elements() for variable in same])
            for variable, values in zip(same, np.split(total, ends[:-1]), strict=True):
                variable.assign(values.reshape(variable.shape))

    def check_same(self, what: str) -> None:
        """Compares a text that must be the same on every worker.

        Raises:
          UsageError: on every worker, if it is not.
        """
        mine = int.from_bytes(hashlib.sha256(what.encode()).digest()[:7], "big")
        chiefs, _ = self.agree(mine, False)
        if self.agree(0, mine != chiefs)[1]:
            who = "has" if mine == chiefs else "does not have"
            raise UsageError(
                "The workers were started with different flags, or see different data: worker "
                f"{self.worker} {who} the chief's. Give all the same."
            )

    def _sum_over_workers(self, value: np.ndarray) -> np.ndarray:
        with self.peers_watched():
            return self._sum(tf.constant(value)).numpy()

    @functools.cached_property
    def _sum(self) -> Callable[[tf.Tensor], tf.Tensor]:
        per_worker = self.num_replicas // self.workers

        @tf.function(autograph=False)
        def total(value: tf.Tensor) -> tf.Tensor:
            def share() -> tf.Tensor:
                speaks = tf.equal(replica_index() % per_worker, 0)  # one replica for all
                return tf.where(speaks, value, tf.zeros_like(value))

            return self.run(share)

        return total

    def memory(self) -> dict[str, float]:
        """Peak memory in GiB: of the process, and of each GPU."""
        with open("/proc/self/status", encoding="ascii") as status:
            match = re.search(r"VmHWM:\s+(\d+) kB", status.read())
        peaks = {"host": int(match[1]) / 2**20} if match else {}
        for device in self.devices:
            if device.startswith("GPU"):
                peak = tf.config.experimental.get_memory_info(device)["peak"]
                peaks[device] = peak / 2**30
        return peaks


def replica_index() -> tf.Tensor | int:
    """The number of the replica that runs the calling function; 0 outside of any."""
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group if context else 0


def num_replicas() -> int:
    """Replicas that run the calling function together; 1 outside of any."""
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1


def sum_over_replicas(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums float32 tensors over all replicas; call it on every replica.

    They travel as one buffer: a transfer costs more than a copy.
    """
    if num_replicas() == 1:
        return tensors
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
    context = tf.distribute.get_replica_context()
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, flat)
    parts = tf.split(total, [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(part, t.shape) for part, t in zip(parts, tensors, strict=True)]


def start(config: Config, cluster: Cluster | None = None) -> Runtime:
    """Chooses devices and number format for the whole process, and meets the other workers.

    Call it before anything else touches a device.

    Raises:
      UsageError: if --devices asks for what is not there.
      PeerError: if another worker's host has no address.
    """
    _share_cores(config)
    if config.xla == "on":  # for CPUs, too
        flags = os.environ.get("TF_XLA_FLAGS", "")
        os.environ["TF_XLA_FLAGS"] = f"{flags} --tf_xla_cpu_global_jit".strip()
    names = devices.choose(config.devices)
    workers = len(cluster.workers) if cluster else 1
    if cluster and names[1:] and names[0].startswith("CPU"):
        raise UsageError(f"--devices={config.devices}: a worker of several has one CPU: cpu.")
    precision = devices.auto_precision() if config.precision == "auto" else config.precision
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    deterministic = config.deterministic
    if deterministic is None:
        deterministic = names[0].startswith("CPU")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if cluster is None:
        return Runtime(_strategy(tuple(names)), tuple(names), precision, deterministic)
    cluster.wait_for_names()
    secs = cluster.wait_secs
    with _time_limit(secs, f"not all of {', '.join(cluster.workers)} came within {secs:g} s"):
        strategy = _joined(cluster, gpus=len(names) if names[0].startswith("GPU") else 0)
        runtime = Runtime(strategy, tuple(names), precision, deterministic, workers, cluster.index)
        runtime.agree(0, False)  # the first meeting
    return runtime


def _share_cores(config: Config) -> None:
    """Sets how many threads an operation uses, if no operation of the process ran before."""
    threads = config.operation_threads
    if not threads and config.is_fully_connected:
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)


@functools.cache
def _strategy(names: tuple[str, ...]) -> tf.distribute.Strategy:
    # One per set of devices in a process: a second one would number its collective
    # operations like the first, and TensorFlow would take them for the same.
    return tf.distribute.MirroredStrategy(names)


def _joined(cluster: Cluster, gpus: int) -> tf.distribute.Strategy:
    """The strategy over all workers, each with so many GPUs, or with a CPU."""
    implementation = tf.distribute.experimental.CommunicationImplementation
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
        num_accelerators={"GPU": gpus},  # or the strategy takes the CPU
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        resolver,
        tf.distribute.experimental.CommunicationOptions(
            implementation=implementation.NCCL if gpus else implementation.RING
        ),
    )
    replicas = max(1, gpus) * len(cluster.workers)
    if strategy.num_replicas_in_sync != replicas:
        raise PeerError(
            f"TensorFlow makes {strategy.num_replicas_in_sync} replicas of {len(cluster.workers)} "
            f"machines, where {replicas} should be."
        )
    # TensorFlow's notifier of preemptions has put itself in the place of ours.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return strategy


@contextlib.contextmanager
def _time_limit(secs: float, failure: str) -> Iterator[None]:
    """Ends the process if a block takes too long.

    The block may wait in C++ for ever and hold Python's lock, so no thread of Python's can
    end it: faulthandler's watchdog does, and what it writes makes a helper say why.
    """
    speaker = "import sys; sys.stdin.buffer.read(1) and print(sys.argv[1], file=sys.stderr)"
    helper = subprocess.Popen(
        [sys.executable, "-c", speaker, f"error: {failure}: see why, and start again."],
        stdin=subprocess.PIPE,
    )
    pipe = cast(IO[bytes], helper.stdin)
    faulthandler.dump_traceback_later(secs, exit=True, file=pipe.fileno())
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        pipe.close()
        helper.wait()


def check_batch(config: Config, replicas: int) -> None:
    """Raises a UsageError unless so many replicas can share a run's batch."""
    if config.batch_size % replicas:
        raise UsageError(
            f"--batch_size={config.batch_size} cannot be shared by {replicas} devices "
            f"(--devices={config.devices}): make it a multiple of {replicas}."
        )
    share, at_once = config.batch_size // replicas, config.batch_per_replica
    if at_once and at_once < share and share % at_once:
        raise UsageError(
            f"--batch_per_replica={at_once} does not divide a device's share of {share} images "
            f"(--batch_size={config.batch_size} over {replicas})."
        )
