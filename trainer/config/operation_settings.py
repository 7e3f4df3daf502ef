"""The settings that say what carries a run, where, and how often: fields of `Config`."""

import dataclasses

from trainer.config.settings import Duration, setting

FEATURES = ("auto", "classifier", "inception")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """Devices, places, paces and limits."""

    precision: str = setting(
        "auto",
        "number format of the networks; auto: bfloat16 on GPUs of compute capability 8.0 "
        "and up, float16 from 7.0, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    batch_per_replica: int = setting(
        0,
        "images that a device takes at once; a larger share of the batch is accumulated, with "
        "the same result but for batch norm, whose statistics are of those images; 0: all",
        low=0,
        may_change=True,
    )
    devices: str = setting(
        "auto",
        "auto, gpu, gpu:0,1 (those two), cpu, or cpu:2 (two logical devices)",
        may_change=True,
    )
    workers: str = setting(
        "",
        "several machines: their addresses as HOST:PORT,HOST:PORT, the first of them the chief; "
        "job-{0..3}.svc:2222 stands for four; TF_CONFIG in the environment goes before it",
        may_change=True,
    )
    deterministic: bool | None = setting(
        None,
        "the same bits in every run on the same hardware; slower on GPUs "
        "(default: on for CPU, off for GPU)",
        may_change=True,
    )

    xla: str = setting(
        "auto",
        "compile the steps with XLA; auto: on one GPU whichever is faster, tried at the start; "
        "on CPUs, on several GPUs and with --deterministic off",
        choices=("auto", "on", "off"),
        may_change=True,
    )

    # Where and how often.
    data_dir: str = setting(
        "",
        "folder that holds the data sets, or gs://BUCKET/PATH (default: $TRAINER_DATA_DIR)",
        may_change=True,
    )
    run_dir: str = setting(
        "",
        "folder of the run, or gs://BUCKET/PATH (default: runs/RECIPE-DATASET)",
        may_change=True,
    )
    tensorboard_dir: str = setting(
        "",
        "folder of TensorBoard's files, or gs://BUCKET/PATH (default: RUN_DIR/tensorboard)",
        may_change=True,
    )
    model_dir: str = setting(
        "",
        "folder, or gs://BUCKET/PATH, that gets the generator of a complete run as a SavedModel "
        "for a server: that of the best checkpoint where there is one; default: none",
        may_change=True,
    )
    scratch_dir: str = setting(
        "",
        "folder for the local copy of a run in a bucket (default: in the cache)",
        may_change=True,
    )
    checkpoint_every: Duration = setting(
        Duration(50, "kimg"), "how often to save; 0: only at the end", low=0, may_change=True
    )
    keep_checkpoints: int = setting(3, "checkpoints kept", low=1, high=1000, may_change=True)
    sample_every: Duration = setting(
        Duration(20, "kimg"),
        "how often to draw samples; 0: only at start and end",
        low=0,
        may_change=True,
    )
    sample_grid: int = setting(
        10,
        "images per row of a sample grid; rows: as many, or one per class",
        low=1,
        high=100,
        may_change=True,
    )
    evaluate_every: Duration = setting(
        Duration(0, "kimg"), "how often to measure quality; 0: never", low=0, may_change=True
    )
    evaluate_samples: int = setting(
        10000, "images drawn to do so", low=100, high=10**6, may_change=True
    )
    evaluate_features: str = setting(
        "auto", "features to go by (see evaluate)", choices=FEATURES, may_change=True
    )
    inception_path: str = setting("", "file of inception (see evaluate)", may_change=True)
    best_metric: str = setting("fid", "metric that selects the best checkpoint", may_change=True)
    stop_after_no_gain_kimg: float = setting(
        0.0, "end once no evaluation was better for so long; 0: never", low=0, may_change=True
    )
    max_failed_saves: int = setting(
        3,
        "saves that may fail in a row, on a full disk say, before the run ends",
        low=0,
        high=100,
        may_change=True,
    )
    max_rollbacks: int = setting(
        3,
        "how often a run whose numbers are no longer finite goes back to its last checkpoint "
        "and on with other noise, before it ends with exit code 70",
        low=0,
        high=1000,
        may_change=True,
    )
    collapse_kimg: float = setting(
        50.0,
        "warn of collapse once D has been right on every image, or all samples alike, for so "
        "many kimg; 0: never",
        low=0,
        may_change=True,
    )
    stop_on_collapse: bool = setting(False, "end the run then, with exit code 70", may_change=True)
    operation_threads: int = setting(
        0,
        "CPU threads that one operation may use; 0: all, or half of them in fully connected "
        "networks, whose operations are small and run two at a time",
        low=0,
        high=1024,
        may_change=True,
    )
    log_every_secs: float = setting(5.0, "seconds between lines of the log", low=0, may_change=True)
    log_every_steps: int = setting(
        0, "steps between lines of metrics.jsonl; 0: only by time", low=0, may_change=True
    )
    log_format: str = setting(
        "text",
        "lines for people, or JSON objects as Cloud Logging reads them",
        choices=("text", "json"),
        may_change=True,
    )
    heartbeat: str = setting(
        "",
        "file that the training loop writes every second or so, for `doctor --liveness`",
        may_change=True,
    )
    metrics_port: int = setting(
        0, "port of a Prometheus endpoint; 0: none", low=0, high=65535, may_change=True
    )
    max_hours: float = setting(
        0.0,
        "save and stop with exit code 42 after so many hours of this process; 0: no limit",
        low=0,
        may_change=True,
    )
    profile: int = setting(
        0,
        "steps to trace for TensorBoard's profiler, after the first 10 of this process; 0: none",
        low=0,
        high=1000,
        may_change=True,
    )
