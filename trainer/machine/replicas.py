"""The replicas that train.  Only this module uses tf.distribute."""

import contextlib
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.errors import ExitCode, PeerError, PeerLostError, UsageError
from trainer.machine import devices, peers
from trainer.machine.cluster import JOIN_SECS, Cluster
from trainer.machine.watchdog import PATIENT_SECS, LateEnd, Watchdog, exit_after, no_late_end

RESUMES = "Running the same command again resumes the run from its last checkpoint."


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The replicas of a run, with one code path for one or many.

    Attributes:
      strategy: TensorFlow's distribution strategy over the selected devices.
      device_names: names of the devices of this machine, such as "GPU:0".
      precision: number format of the networks: "float32", "tf32", "bfloat16" or "float16".
      deterministic: whether operations are bit-reproducible.
      num_workers: number of machines that train together.
      worker_index: index of this machine; 0 is the chief.
      watchdog: ends the process if it waits too long; None for none.
      patient_secs: how long, in seconds, another worker may restore or save, or a compilation take.
    """

    strategy: tf.distribute.Strategy
    device_names: tuple[str, ...]
    precision: str
    deterministic: bool
    num_workers: int = 1
    worker_index: int = 0
    watchdog: Watchdog | None = None
    patient_secs: float = PATIENT_SECS

    @property
    def is_chief(self) -> bool:
        """Whether this worker is the chief, which writes the run directory."""
        return self.worker_index == 0

    @property
    def is_on_gpus(self) -> bool:
        """Whether the replicas are GPUs."""
        return self.device_names[0].startswith("GPU")

    @property
    def num_replicas(self) -> int:
        """Number of replicas on all machines."""
        return self.strategy.num_replicas_in_sync

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Creates the variables of the block on every replica, with the values of the chief."""
        with self.converted_peer_errors(), self.strategy.scope():
            yield

    def run(self, function: Callable[[], None]) -> None:
        """Calls `function` on every replica."""
        self.strategy.run(function)

    def run_and_sum(self, function: Callable[..., tf.Tensor], *args: Any) -> tf.Tensor:
        """Calls `function` on every replica and returns the sum of the results."""
        values = self.strategy.run(function, args=args)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    @property
    def num_local_replicas(self) -> int:
        """Number of replicas on which `run_on_local_replicas` calls a function."""
        return len(self.device_names) if self.num_workers == 1 else 1

    def run_on_local_replicas(self, function: Callable[[Any], tf.Tensor]) -> list[tf.Tensor]:
        """Returns the result of `function` on each replica of this machine.

        `function` receives the index of the replica.  With several machines, a single machine
        can use only one of its replicas.
        """
        if self.num_local_replicas == 1:
            return [function(0)]
        values = self.strategy.run(lambda: function(replica_index()))
        return list(self.strategy.experimental_local_results(values))

    def make_iterator(self, make: Callable[[range], tf.data.Dataset]) -> Any:
        """Returns an iterator over `make(replicas)`, with one element per replica and step.

        `make` receives the range of replicas that this process feeds. Its data set must not end.
        """
        if self.device_names == ("CPU:0",) and self.num_workers == 1:
            return iter(make(range(1)))  # the strategy's iterator is two to three times slower

        def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
            """Returns the data set of the replicas that an input pipeline feeds."""
            count = context.num_replicas_in_sync // context.num_input_pipelines
            first = context.input_pipeline_id * count
            with tf.device("CPU:0"):
                dataset = make(range(first, first + count))
            if self.num_workers > 1:
                # A data set that may end costs an all-reduce per batch, by which the workers find
                # out whether all of them have one.
                dataset = dataset.apply(
                    tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
                )
            return dataset

        return iter(self.strategy.distribute_datasets_from_function(pipeline))

    @contextlib.contextmanager
    def converted_peer_errors(self) -> Iterator[None]:
        """Converts the errors that TensorFlow raises after a lost peer into a PeerLostError."""
        with contextlib.nullcontext() if self.num_workers == 1 else peers.converted_errors():
            yield

    def agree(self, count: int, stop: bool) -> tuple[int, bool]:
        """Returns the count of the chief, and whether any worker stops.

        Every worker must call it at the same time.
        """
        if self.num_workers == 1:
            return count, stop
        mine = [count if self.is_chief else 0, int(stop)]
        chief_count, stops = self.sum_over_workers(np.array(mine, np.int64))
        return int(chief_count), bool(stops)

    def barrier(self) -> None:
        """Waits until every worker calls it."""
        self.agree(0, False)

    def leave(self) -> None:
        """Waits until every worker calls it, so that none ends while another needs it."""
        self.barrier()
        # Whoever has passed the barrier may end, although others still receive its last message.
        # So all meet again, and this time a worker that is gone is no error: it can only have
        # ended after all had passed the first barrier.
        with contextlib.suppress(PeerLostError):
            self.barrier()

    def broadcast(self, value: int) -> int:
        """Returns the value of the chief.  Every worker must call it at the same time."""
        return self.agree(value, False)[0]

    def any_worker(self, flag: bool) -> bool:
        """Returns whether the flag is set on any worker.  Every worker must call it at once."""
        return self.agree(0, flag)[1]

    def broadcast_variables(self, variables: Iterable[tf.Variable]) -> None:
        """Assigns the values of the chief to variables.  Every worker must call it at once."""
        if self.num_workers == 1:
            return
        by_type: dict[tf.DType, list[tf.Variable]] = {}
        for variable in variables:
            by_type.setdefault(variable.dtype, []).append(variable)
        for same in by_type.values():  # one message per type: a transfer costs more than a copy
            flat = np.concatenate([variable.numpy().ravel() for variable in same])
            total = self.sum_over_workers(flat if self.is_chief else np.zeros_like(flat))
            ends = np.cumsum([variable.shape.num_elements() for variable in same])
            for variable, values in zip(same, np.split(total, ends[:-1]), strict=True):
                variable.assign(values.reshape(variable.shape))

    @contextlib.contextmanager
    def watched(self, timeout_secs: float, late_end: LateEnd) -> Iterator["Replicas"]:
        """Yields replicas whose `limited` has an effect, unless this is one CPU, which never waits.

        Args:
          timeout_secs: value of --step_timeout_secs; 0 disables all limits.
          late_end: see `Watchdog`.
        """
        if not timeout_secs or (self.num_replicas == 1 and not self.is_on_gpus):
            yield self
            return
        with contextlib.closing(Watchdog(ExitCode.STOPPED, late_end)) as watchdog:
            patient_secs = max(PATIENT_SECS, timeout_secs)
            yield dataclasses.replace(self, watchdog=watchdog, patient_secs=patient_secs)

    @contextlib.contextmanager
    def limited(
        self, what: str, secs: float | None = None, resumes: str = RESUMES
    ) -> Iterator[None]:
        """Ends the process with exit code 42 if the block does not end in time.

        Args:
          what: what waits for other workers or devices in the block.
          secs: time limit in seconds, by default `patient_secs`; that of an outer block takes
            precedence.
          resumes: the sentence that says how to go on.
        """
        if self.watchdog is None:
            yield
            return
        secs = self.patient_secs if secs is None else secs
        with self.watchdog.limit(secs, f"Stopped: {what} did not end within {secs:g} s. {resumes}"):
            yield

    def sum_over_workers(self, value: np.ndarray) -> np.ndarray:
        """Returns the sum of an array over all workers, each of which must call it at once."""
        with self.limited("the exchange with the other workers"), self.converted_peer_errors():
            return self._sum(tf.constant(value)).numpy()

    @functools.cached_property
    def _sum(self) -> Callable[[tf.Tensor], tf.Tensor]:
        per_worker = self.num_replicas // self.num_workers

        @tf.function(autograph=False)
        def total(value: tf.Tensor) -> tf.Tensor:
            def share() -> tf.Tensor:
                # One replica per worker contributes.
                speaks = tf.equal(replica_index() % per_worker, 0)
                return tf.where(speaks, value, tf.zeros_like(value))

            return self.run_and_sum(share)

        return total


def replica_index() -> tf.Tensor | int:
    """Returns the index of the replica that runs the caller; 0 outside of replicas."""
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group if context else 0


def num_replicas() -> int:
    """Returns the number of replicas that run the caller together; 1 outside of replicas."""
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1


def sum_over_replicas(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the sums of float32 tensors over all replicas.  Call it on every replica.

    The tensors are transferred as one buffer, because a transfer costs more than a copy.
    """
    if num_replicas() == 1:
        return tensors
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
    context = tf.distribute.get_replica_context()
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, flat)
    parts = tf.split(total, [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(part, t.shape) for part, t in zip(parts, tensors, strict=True)]


def gather_from_replicas(vector: tf.Tensor) -> tf.Tensor:
    """Returns the float32 vectors [N] of all replicas, [replicas, N].  Call it on every replica.

    Each replica fills its own row of zeros, so that one sum gathers them. Unlike TensorFlow's
    gathering operations, a sum needs no exchange of shapes, and its gradient is a sum again.
    """
    count = num_replicas()
    if count == 1:
        return vector[None]
    is_own = tf.one_hot(replica_index(), count)
    return sum_over_replicas([is_own[:, None] * vector])[0]


def create_replicas(
    config: Config,
    cluster: Cluster | None = None,
    *,
    small_operations: bool = False,
    late_end: LateEnd = no_late_end,
) -> Replicas:
    """Selects the devices and the number format of the process, and joins the other workers.

    Call it before anything else uses a device, and with several workers after `rendezvous.meet`.

    Args:
      config: the configuration of the run.
      cluster: the workers, if several machines train together.
      small_operations: whether an operation uses half of the CPU cores, because two run at a
        time; --operation_threads takes precedence.
      late_end: see `Watchdog`; used if not all workers join in time.

    Raises:
      UsageError: if a device of --devices does not exist.
      PeerError: if the workers have different numbers of GPUs.
    """
    devices.share_cores(config.operation_threads, small_operations)
    if config.xla == "on":  # XLA on CPUs needs this flag
        flags = os.environ.get("TF_XLA_FLAGS", "")
        os.environ["TF_XLA_FLAGS"] = f"{flags} --tf_xla_cpu_global_jit".strip()
    names = devices.select_devices(config.devices)
    workers = len(cluster.workers) if cluster else 1
    if cluster and names[1:] and names[0].startswith("CPU"):
        raise UsageError(
            f"--devices={config.devices}: with several workers each one has a single CPU device. "
            "Use --devices=cpu."
        )
    precision = devices.auto_precision() if config.precision == "auto" else config.precision
    devices.set_number_format(precision)
    deterministic = config.deterministic
    if deterministic is None:
        deterministic = names[0].startswith("CPU")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if cluster is None:
        return Replicas(_strategy(tuple(names)), tuple(names), precision, deterministic)
    failure = f"not all of {', '.join(cluster.workers)} joined within {JOIN_SECS:g} s"
    with exit_after(JOIN_SECS, failure, cluster.wait_code, late_end), peers.converted_errors():
        strategy = _joined(cluster, gpus=len(names) if names[0].startswith("GPU") else 0)
        replicas = Replicas(
            strategy, tuple(names), precision, deterministic, workers, cluster.index
        )
        replicas.barrier()  # waits for all workers
    return replicas


@functools.cache
def _strategy(names: tuple[str, ...]) -> tf.distribute.Strategy:
    # One strategy per set of devices: a second one would give its collective operations the
    # keys of the first, and TensorFlow would confuse them.
    return tf.distribute.MirroredStrategy(names)


def _joined(cluster: Cluster, gpus: int) -> tf.distribute.Strategy:
    """Returns the strategy over all workers, each with `gpus` GPUs or with one CPU."""
    implementation = tf.distribute.experimental.CommunicationImplementation
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
        num_accelerators={"GPU": gpus},  # without it the strategy uses the CPU
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
            f"TensorFlow found {strategy.num_replicas_in_sync} replicas on {len(cluster.workers)} "
            f"machines instead of {replicas}. Check that all workers have the same GPUs."
        )
    # TensorFlow's preemption notifier has replaced our signal handler.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return strategy
