"""`prepare`: turns pictures into a set that training reads at once."""

import logging
import re
from typing import Any

from trainer import recipes
from trainer.commands.flags import shapes
from trainer.commands.flags.command_line import CommandLine
from trainer.config.image_size import shown
from trainer.data.file_stores import printable
from trainer.data.form import FormOptions
from trainer.data.preparing import prepare
from trainer.data.preparing.join import Facts
from trainer.data.preparing.part import Part, Settings
from trainer.errors import UsageError
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to

SUMMARY = """Turns pictures into a set that training reads without decoding.  Reads a folder, .zip,
.npz, .tar (names as of WebDataset) or .parquet, resizes the pictures and writes shards of images
with a manifest, which states counts, classes, sizes, checksums, broken files and duplicates, and
preview.png.  `train --dataset=OUT` reads the set from a disk or a bucket.  A command that was
killed goes on where it stopped.  --shard prepares one part of a large set, and --join makes a set
of the parts."""
SHARD = re.compile(r"(\d{1,5})/([1-9]\d{0,4})")
MAX_NAMED = 3
MIN_SIDE = 8

log = logging.getLogger(__name__)


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    values = _command_line().parse(arguments)
    if not values["out"]:
        raise UsageError("--out is missing: the folder, or gs://BUCKET/PATH, to write.")
    part = _part(values["shard"])
    console = Console()
    log_to(console)
    if values["join"]:
        if values["source"] or part is not None:
            raise UsageError("--join joins the parts in --out. Remove --source and --shard.")
        manifest = prepare.join_parts(values["out"], console.bar)
        console.end_bar()
        print(_describe(values["out"], manifest))
        return
    if not values["source"]:
        raise UsageError("--source is missing: the folder or file of pictures, or gs://...")
    settings = _settings(values)
    if part is not None:
        _check_fixed(values)
        prepare.prepare(values["source"], values["out"], settings, part, console.bar)
        console.end_bar()
        print(
            f"Part {part.index} of {part.count} is complete. When all parts are, run: "
            f"python -m trainer prepare --join --out={values['out']}"
        )
        return
    prepare.prepare(values["source"], values["out"], settings, Part(), console.bar)
    manifest = prepare.join_parts(values["out"], console.bar)
    console.end_bar()
    print(_describe(values["out"], manifest))


def _command_line() -> CommandLine:
    parser = CommandLine("prepare", SUMMARY)
    parser.path("source", "pictures: a folder or file, or gs://BUCKET/PATH")
    parser.path("out", "folder of the prepared set, or gs://BUCKET/PATH")
    parser.text(
        "image_size",
        "size of the images, as for train (default: the side of the smallest picture, at most 64)",
    )
    parser.text("fit", "how pictures are brought to this size: crop, pad, stretch or auto")
    parser.text("channels", "channels of the images: 1, 3, 4, opaque or auto, as for train")
    parser.boolean(
        "skip_bad_images", "skip pictures that cannot be read, and list them", default=False
    )
    parser.real(
        "test_share",
        "share of the pictures in the split test, chosen by a hash of their content: a picture "
        "stays in its split when others are added (default: the folders train/ and test/)",
        default=0.0,
    )
    parser.text("shard", "part to prepare, as INDEX/COUNT with INDEX from 0, such as 3/16")
    parser.boolean("join", "make a set of the parts in --out", default=False)
    return parser


def _part(text: str | None) -> Part | None:
    if text is None:
        return None
    match = SHARD.fullmatch(text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(
            f"--shard={text} must be INDEX/COUNT with INDEX from 0 to COUNT - 1, such as 0/16."
        )
    return Part(int(match[1]), int(match[2]))


def _settings(values: dict[str, Any]) -> Settings:
    if not 0 <= values["test_share"] < 1:
        raise UsageError(f"--test_share={values['test_share']:g} must be from 0 to below 1.")
    config = recipes.resolve(shapes.given(values))
    sides = config.image_sides
    if any(sides) and min(sides) < MIN_SIDE:
        raise UsageError(f"--image_size={values['image_size']} must be {MIN_SIDE} or more.")
    return Settings(
        options=FormOptions.of(config),
        skip_bad=values["skip_bad_images"],
        test_share=values["test_share"],
    )


def _check_fixed(values: dict[str, Any]) -> None:
    """Raises a UsageError if the parts might choose different forms."""
    chosen = {"image_size": ("", "0"), "channels": ("", "auto", "opaque"), "fit": ("", "auto")}
    for name, automatic in chosen.items():
        if (values[name] or "") in automatic:
            raise UsageError(
                f"--shard needs --{name} with a fixed value, so that all parts are alike."
            )


def _describe(out: str, manifest: Facts) -> str:
    """Returns what was prepared as lines of text."""
    height, width, channels = manifest["shape"]
    kind = {1: "gray", 3: "colour", 4: "colour with transparency"}[channels]
    found = manifest["duplicates"]
    classes = f"{len(manifest['classes']):,} classes" if manifest["classes"] else "no labels"
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest["splits"].items() if count)
    lines = [
        f"{manifest['images']:,} images of {shown(height, width)}, {kind}, {classes} ({splits})",
        f"Copies: {found['exact']:,} exact, {found['near']:,} exact or nearly so "
        "(duplicates.json names them)",
    ]
    if enlarged := manifest["enlarged"]:
        lines.append(f"Enlarged: {enlarged:,} that are smaller than {shown(height, width)}")
    if skipped := manifest["skipped"]:
        named = ", ".join(printable(name) for name in skipped[:MAX_NAMED])
        more = f" and {len(skipped) - MAX_NAMED:,} more" if len(skipped) > MAX_NAMED else ""
        lines.append(f"Skipped: {len(skipped):,} that cannot be read: {named}{more}")
    lines.append(f"Preview: {out.rstrip('/')}/preview.png")
    return "\n".join([*lines, f"To train: python -m trainer train --dataset={out}"])
