"""Settings of how a run is carried out: intervals, speed, outputs, limits and workers."""

import dataclasses

from trainer.config.settings import Duration, FilePath, setting

FEATURES = ("auto", "classifier", "inception")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Checkpoints, samples and evaluation."""

    checkpoint_every: Duration = setting(
        Duration(50, "kimg"),
        "interval between checkpoints; 0 saves only at the end",
        bounds=(0, None),
        scope="resume",
    )
    keep_checkpoints: int = setting(
        3, "number of checkpoints to keep", bounds=(1, 1000), scope="resume"
    )
    sample_every: Duration = setting(
        Duration(20, "kimg"),
        "interval between sample grids; 0 draws them only at the start and at the end",
        bounds=(0, None),
        scope="resume",
    )
    sample_grid: int = setting(
        10,
        "images per row of a sample grid, which has one row per class if the run is conditional "
        "and is square otherwise",
        bounds=(1, 100),
        scope="resume",
    )
    evaluate_every: Duration = setting(
        Duration(0, "kimg"),
        "interval between evaluations of the image quality; 0 disables them",
        bounds=(0, None),
        scope="resume",
        legacy=Duration(0, "kimg"),
    )
    evaluate_samples: int = setting(
        10000,
        "images drawn per evaluation",
        bounds=(100, 10**6),
        scope="resume",
        legacy=10000,
    )
    evaluate_features: str = setting(
        "auto",
        "network whose features the evaluations compare: the data set's own classifier, "
        "inception, or auto (inception if --inception_path is given)",
        choices=FEATURES,
        scope="resume",
        legacy="auto",
    )
    inception_path: FilePath = setting(
        "",
        "file of the Inception network, or the archive that holds it; may be gs://BUCKET/PATH",
        scope="resume",
        legacy="",
    )
    inception_sha256: str = setting(
        "",
        "SHA-256 that the graph of the Inception network must have, in 64 hexadecimal digits; "
        "empty for any",
        scope="resume",
        legacy="",
    )
    best_metric: str = setting(
        "fid", "metric that selects the best checkpoint", scope="resume", legacy="fid"
    )
    stop_after_no_gain_kimg: float = setting(
        0.0,
        "stop training when the best metric has not improved for this many kimg; 0 disables it",
        bounds=(0, None),
        scope="resume",
        legacy=0.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    """Precision and speed."""

    precision: str = setting(
        "auto",
        "number format of the networks' computations. auto selects bfloat16 on GPUs of compute "
        "capability 8.0 or higher, float16 on 7.x, and float32 otherwise. tf32 is float32 whose "
        "matrix products and convolutions are rounded to TensorFloat-32 on GPUs of compute "
        "capability 8.0 or higher; float32 never rounds them",
        choices=("auto", "float32", "tf32", "bfloat16", "float16"),
    )
    batch_per_replica: int = setting(
        0,
        "images that a replica processes at once. A larger share of the batch is split into "
        "micro-batches whose gradients are accumulated, which gives the same result except that "
        "batch norm computes its statistics per micro-batch. 0 processes the whole share at once",
        bounds=(0, None),
        scope="resume",
    )
    deterministic: bool | None = setting(
        None,
        "make every run on the same hardware bit-identical, which is slower on GPUs (default: on "
        "for CPUs, off for GPUs)",
        scope="resume",
    )
    xla: str = setting(
        "auto",
        "compile the training step with XLA: into one program on one device, in parts on several. "
        "auto measures on one GPU whether it is faster, keeps the result for the run, and means "
        "off on CPUs, on several GPUs and with --deterministic",
        choices=("auto", "on", "off"),
        scope="resume",
        legacy="auto",
    )
    data_on_device: str = setting(
        "auto",
        "keep the images in the memory of each device, which gives the same result. auto does so "
        "on GPUs if they take at most a quarter of the memory of each",
        choices=("auto", "on", "off"),
        scope="resume",
        legacy="auto",
    )
    time_data_wait: bool | None = setting(
        None,
        "measure which share of the time the steps wait for their data, which delays each step on "
        "GPUs (default: on for CPUs, off for GPUs)",
        scope="resume",
        legacy=None,
    )
    operation_threads: int = setting(
        0,
        "CPU threads that one operation may use. 0 means all cores, or half of them for fully "
        "connected networks, whose small operations run two at a time",
        bounds=(0, 1024),
        scope="resume",
        legacy=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Outputs and log."""

    tensorboard_dir: FilePath = setting(
        "",
        "folder of the TensorBoard event files, or gs://BUCKET/PATH (default: RUN_DIR/tensorboard)",
        scope="start",
        legacy="",
    )
    model_dir: FilePath = setting(
        "",
        "folder, or gs://BUCKET/PATH, to which a complete run exports its generator as a "
        "SavedModel for serving, from the best checkpoint if there is one (default: no export)",
        scope="start",
        legacy="",
    )
    scratch_dir: FilePath = setting(
        "",
        "local folder for the working copy of a run in a bucket (default: in the user's cache)",
        scope="start",
        legacy="",
    )
    log_every_secs: float = setting(
        5.0, "seconds between log lines", bounds=(0, None), scope="resume"
    )
    log_every_steps: int = setting(
        0,
        "steps between lines of metrics.jsonl, in addition to --log_every_secs; 0 disables it",
        bounds=(0, None),
        scope="resume",
    )
    log_format: str = setting(
        "text",
        "format of the log: text, or JSON objects as Cloud Logging expects them",
        choices=("text", "json"),
        scope="start",
        legacy="text",
    )
    heartbeat: FilePath = setting(
        "",
        "file that shows `doctor --liveness` that the process is alive, and its phase. During "
        "training only the training loop updates it",
        scope="start",
        legacy="",
    )
    metrics_port: int = setting(
        0,
        "port of the Prometheus metrics endpoint; 0 disables it",
        bounds=(0, 65535),
        scope="start",
        legacy=0,
    )
    metrics_address: str = setting(
        "",
        "address on which the metrics endpoint listens, such as 127.0.0.1 (default: all)",
        scope="start",
        legacy="",
    )
    profile: int = setting(
        0,
        "number of steps to trace for TensorBoard's profiler, after the first 10 steps of this "
        "process; 0 disables tracing",
        bounds=(0, 1000),
        scope="start",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits and failures."""

    max_hours: float = setting(
        0.0,
        "hours after which this process saves a checkpoint and stops with exit code 42; 0 means "
        "no limit",
        bounds=(0, None),
        scope="start",
    )
    grace_secs: float = setting(
        12.0,
        "seconds in which a stop on request saves a checkpoint and uploads it to a bucket, before "
        "the process is ended; clusters allow 15 seconds on spot nodes and usually 30 elsewhere",
        bounds=(1, 3600),
        scope="start",
        legacy=12.0,
    )
    step_timeout_secs: float = setting(
        600.0,
        "seconds after which a call of the training steps, which takes about half a second or one "
        "step, counts as hung: the process ends with exit code 42. Compiling, and waiting for a "
        "worker that restores, evaluates or saves, may take two hours; in a Pod the liveness probe "
        "ends a start that compiles or restores for more than an hour. 0 disables these limits, "
        "and a process that trains alone on one CPU device has none, because it waits for nothing",
        bounds=(0, None),
        scope="start",
        legacy=600.0,
    )
    max_failed_saves: int = setting(
        3,
        "number of consecutive saves that may fail, for example on a full disk, before the run "
        "stops with an error",
        bounds=(0, 100),
        scope="resume",
    )
    max_rollbacks: int = setting(
        3,
        "number of times that a run with non-finite losses or weights returns to its last "
        "checkpoint and continues with other noise, before it stops with exit code 70",
        bounds=(0, 1000),
        scope="resume",
    )
    collapse_kimg: float = setting(
        50.0,
        "warn of collapse when the discriminator has classified every image correctly, or all "
        "samples have looked alike, for this many kimg; 0 disables the warning",
        bounds=(0, None),
        scope="resume",
    )
    stop_on_collapse: bool = setting(
        False, "stop with exit code 70 when collapse is detected", scope="resume"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers."""

    workers: str = setting(
        "",
        "addresses of the workers of a run on several machines, as HOST:PORT,HOST:PORT. The first "
        "one is the chief, and job-{0..3}.svc:2222 stands for four addresses. The environment "
        "variable TF_CONFIG takes precedence",
        scope="start",
        legacy="",
    )
