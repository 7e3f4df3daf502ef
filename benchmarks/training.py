"""Compares training speed with a plain TensorFlow program and with PyTorch.

    python -m benchmarks.training --recipes=dcgan,mlp --precisions=float32 --torch-compile

The programs of a row are measured alternately, in images per second. The columns x_... are the
median over rounds of the trainer's speed divided by that of the other program. "dcgan" is
the recipe without labels, and "dcgan-conditional" is the recipe with its default settings.

PyTorch's threads synchronize at each operation, so PyTorch is many times slower while another
process is busy. Small networks may be faster with --torch-threads=1.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import Case, Measured

RECIPES = (
    "dcgan", "dcgan-conditional", "dcgan-sigmoid", "mlp-small", "dcgan-kstep", "cgan", "mlp",
    "dcgan-studiogan",
)  # fmt: skip
OTHERS = {
    "trainer, XLA": "xla",
    "tensorflow": "tensorflow",
    "torch": "torch",
    "torch compiled": "compiled",
}


def settings_of(name: str) -> dict[str, Any]:
    """Returns the settings of a row: its recipe and whether the networks get labels."""
    named = {"dcgan": False, "dcgan-conditional": True}
    if name in named:
        return dict(recipe="dcgan", conditional=named[name])
    return dict(recipe=name)


def cases(
    settings: dict[str, Any],
    precision: str,
    shape: dict[str, int],
    *,
    gpu: bool = False,
    compile_too: bool = False,
    xla_too: bool = False,
    xla: bool = True,
    torch_threads: int = 0,
) -> list[Case]:
    """Returns the cases of a row: the trainer and the programs to compare it with."""
    given = {**settings, **shape}
    # All cases share a GPU's memory. On a CPU no case may see the GPUs.
    environment = dict(TF_FORCE_GPU_ALLOW_GROWTH="true") if gpu else dict(CUDA_VISIBLE_DEVICES="-1")
    devices = "gpu:0" if gpu else "cpu"
    for_torch = dict(given, device="cuda" if gpu else "cpu", dtype=precision)
    torch_loop = "benchmarks.reference.torch_loops:work"
    threads = dict(OMP_NUM_THREADS=str(torch_threads)) if torch_threads else {}
    made = [
        Case(
            "trainer",
            "benchmarks.trained:step",
            dict(given, precision=precision, devices=devices),
            environment,
        ),
        Case(
            "tensorflow",
            "benchmarks.reference.keras_loops:work",
            dict(given, precision=precision, jit_compile="auto" if xla else False),
            environment,
        ),
        Case("torch", torch_loop, for_torch, environment | threads),
    ]
    if xla_too:
        clusters = dict(TF_XLA_FLAGS="--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit")
        ours = made[0]
        made.append(Case("trainer, XLA", ours.make, ours.options, environment | clusters))
    if compile_too:
        mode = "reduce-overhead" if gpu else "default"
        options = dict(for_torch, compiled=True, mode=mode)
        made.append(Case("torch compiled", torch_loop, options, environment | threads))
    return made


def row_of(name: str, precision: str, measured: dict[str, Measured]) -> dict[str, Any]:
    """Returns a row: images/s of each program, and the trainer's ratio to the others."""
    ours = measured["trainer"]
    batch = ours.facts.get("batch", "?")
    row = {"recipe": name, "precision": precision, "batch": batch, "trainer": ours.rate}
    for case, short in OTHERS.items():
        if case not in measured:
            continue
        other = measured[case]
        works = ours.rates and other.rates
        row[case] = other.rate if other.rates else other.error
        row[f"x_{short}"] = ours.over(other) if works else ""
    return row


def side_and_channels(name: str, side: int, channels: int) -> dict[str, int]:
    """Returns the images' shape: the given one, or by default MNIST's or CIFAR-10's."""
    usual = (32, 3) if name == "dcgan-studiogan" else (28, 1)
    return dict(side=side or usual[0], channels=channels or usual[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="comma-separated rows")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--batches", default="0", help="batch sizes; 0 is that of the recipe")
    parser.add_argument("--side", type=int, default=0, help="side of the images in pixels")
    parser.add_argument("--channels", type=int, default=0, help="channels of the images")
    parser.add_argument("--gpu", action="store_true", help="use the first GPU instead of the CPU")
    parser.add_argument("--torch-compile", action="store_true", help="also measure torch.compile")
    parser.add_argument("--xla", action="store_true", help="also measure the trainer with --xla=on")
    parser.add_argument(
        "--no-xla",
        action="store_true",
        help="disable XLA in train_on_batch of the TensorFlow programs",
    )
    parser.add_argument(
        "--torch-threads", type=int, default=0, help="threads of PyTorch; 0 is its default"
    )
    given = parser.parse_args(arguments)
    options = dict(
        gpu=given.gpu,
        compile_too=given.torch_compile,
        xla_too=given.xla,
        xla=not given.no_xla,
        torch_threads=given.torch_threads,
    )
    rows = []
    for name in given.recipes.split(","):
        if name not in RECIPES:
            parser.error(f"--recipes={name}: one of {', '.join(RECIPES)}")
        shape = side_and_channels(name, given.side, given.channels)
        for precision in given.precisions.split(","):
            for batch in map(int, given.batches.split(",")):
                settings = settings_of(name) | (dict(batch_size=batch) if batch else {})
                made = cases(settings, precision, shape, **options)
                measured = harness.measure(made, rounds=given.rounds, secs=given.secs)
                rows.append(row_of(name, precision, measured) | shape)
                harness.print_table(rows[-1:])
    harness.report("training", rows, **options, rounds=given.rounds, secs=given.secs)


if __name__ == "__main__":
    main()
