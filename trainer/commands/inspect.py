"""`inspect`: looks at a data set without TensorFlow."""

import json
import shlex
from pathlib import Path
from typing import Any

from trainer import recipes
from trainer.commands.flags import shapes
from trainer.commands.flags.command_line import CommandLine
from trainer.config import image_size
from trainer.data import contact_sheet, inspection
from trainer.errors import StorageError, UsageError
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to

SUMMARY = """Looks at a data set before training.  Counts its pictures, sizes, channels, classes,
exact copies and broken files, draws a contact sheet, and shows what training would make of it: the
shape of the images, the crop, memory and disk space, and the command to run."""
FITS = {
    "crop": "crop: the middle of each picture is used",
    "pad": "pad: whole pictures between borders",
    "stretch": "stretch: whole pictures, whose proportions change",
}
MAX_NAMED = 3  # broken files or copies that are named
MAX_CLASSES = 12
LABEL_WIDTH = 14


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    parser = CommandLine("inspect", SUMMARY)
    parser.path("dataset", "path or name of a data set, as for train")
    parser.path("data_dir", "folder of the named data sets", default="")
    parser.text("split", "split to look at closely: train, test or all", default="train")
    parser.text("image_size", "size of the images, as for train")
    parser.text("fit", "how pictures are brought to this size, as for train")
    parser.text("channels", "channels of the images, as for train")
    parser.integer("sample", "number of pictures to read, spread evenly; 0 reads all", default=0)
    parser.path("out", "the contact sheet, a .png file (default: NAME-sheet.png in this folder)")
    parser.boolean("json", "print one JSON object with all facts", default=False)
    values = parser.parse(arguments)
    if not values["dataset"]:
        raise UsageError("--dataset is missing: the folder or file of pictures to look at.")
    if values["sample"] < 0:
        raise UsageError(f"--sample={values['sample']} must be 0 or more.")
    name = Path(values["dataset"].rstrip("/")).name or "pictures"
    out = Path(values["out"] or f"{name}-sheet.png")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out={out} must end in .png.")
    given = {key: values[key] for key in ("dataset", "data_dir", "split")}
    given |= shapes.given(values)
    config = recipes.resolve({**given, "skip_bad_images": True})
    console = Console()
    if not values["json"]:
        log_to(console)
    found = inspection.inspect(config, values["sample"], console.bar)
    console.end_bar()
    try:
        contact_sheet.save(found.sheet, out)
    except OSError as error:
        raise StorageError(
            f"--out={out} cannot be written ({error.strerror or error}). Set --out to a file in a "
            "folder that is writable."
        ) from None
    facts = {**found.facts, "sheet": str(out), "command": _command(values, found.facts)}
    print(json.dumps(facts) if values["json"] else _describe(values["dataset"], facts))


def _command(values: dict[str, Any], facts: inspection.Facts) -> str:
    flags = [f"--dataset={values['dataset']}"]
    flags += [f"--data_dir={values['data_dir']}"] if values["data_dir"] else []
    flags += [f"--split={values['split']}"] if values["split"] != "train" else []
    flags += [f"--{name}={value}" for name, value in shapes.given(values).items()]
    flags += ["--skip_bad_images"] if facts["broken"] else []
    return shlex.join(["python", "-m", "trainer", "train", *flags])


def _describe(dataset: str, facts: inspection.Facts) -> str:
    """Returns the facts as lines of text."""
    lines = [f"{dataset}: {_counted(facts['pictures'], 'picture')}"]
    if facts["read"] < facts["pictures"]:
        lines[0] += f", of which {facts['read']:,} were read (--sample)"
    rows = [
        ("files", _files(facts)),
        ("sizes", _sizes(facts["sizes"])),
        ("channels", _channels(facts)),
        ("splits", _named_counts(facts["splits"])),
        ("classes", _classes(facts["classes"])),
        ("broken", _listed(facts["broken"], "cannot be read") or "none"),
        ("copies", _copies(facts["duplicates"])),
        ("sheet", facts["sheet"]),
    ]
    lines += [f"  {label:{LABEL_WIDTH}}{text}" for label, text in rows if text]
    lines += ["Training would use"]
    lines += [f"  {label:{LABEL_WIDTH}}{text}" for label, text in _training(facts)]
    return "\n".join([*lines, f"To train: {facts['command']}"])


def _files(facts: inspection.Facts) -> str:
    if "formats" not in facts:
        return ""
    others = f", and {_counted(facts['other_files'], 'other file')}" if facts["other_files"] else ""
    return _named_counts(facts["formats"]) + others


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _sizes(sizes: inspection.Facts) -> str:
    if not sizes:
        return "unknown, because no picture can be read"
    first, median, last = (
        image_size.shown(height, width)
        for height, width in (sizes[name] for name in ("smallest", "median", "largest"))
    )
    if sizes["different"] == 1:
        return f"all {first}"
    return f"{first} to {last}, median {median}, {sizes['different']:,} different"


def _channels(facts: inspection.Facts) -> str:
    gray = facts["gray"]
    colour = facts["read"] - len(facts["broken"]) - gray
    alpha = f"; {facts['alpha']:,} with an alpha channel" if facts["alpha"] else ""
    return _named_counts({"gray": gray, "colour": colour}) + alpha


def _named_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items() if count)


def _classes(counts: dict[str, int]) -> str:
    if not counts:
        return "none, so the networks are trained without labels"
    named = _named_counts(dict(list(counts.items())[:MAX_CLASSES]))
    more = len(counts) - MAX_CLASSES
    return f"{len(counts):,}: {named}" + (f" and {more:,} more" if more > 0 else "")


def _listed(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = len(names) - MAX_NAMED
    return f"{len(names):,} {what}: {', '.join(names[:MAX_NAMED])}" + (
        f" and {more:,} more (--json lists all)" if more > 0 else ""
    )


def _copies(groups: list[list[str]]) -> str:
    if not groups:
        return "none"
    copies = sum(len(group) - 1 for group in groups)
    text = _listed([" = ".join(group[:MAX_NAMED]) for group in groups], "sets of equal pictures")
    return f"{copies:,} too many. {text}"


def _training(facts: inspection.Facts) -> list[tuple[str, str]]:
    height, width, channels = facts["shape"]
    kind = {1: "gray", 3: "colour", 4: "colour with transparency"}[channels]
    size = facts["bytes"] / 2**20
    rows = [
        ("images", f"{facts['images']:,} of {image_size.shown(height, width)}, {kind}"),
        ("labels", "yes" if facts["conditional"] else "no"),
    ]
    if facts.get("smallest"):
        rows.insert(1, ("size", f"that of the smallest picture, {facts['smallest']}"))
    if facts.get("fit"):
        rows.append(("fit", FITS[facts["fit"]]))
    rows += [("note", note) for note in facts.get("notes", ())]
    if facts["in_memory"]:
        rows.append(("memory", f"{2 * size:,.1f} MiB, which hold all images"))
    else:
        rows.append(("memory", "little: images are read from the disk during training"))
    if facts.get("cache"):
        rows.append(("disk", f"{size:,.1f} MiB for decoded images in {facts['cache']}"))
    return rows
