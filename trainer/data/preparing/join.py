"""Joins the parts of a prepared set: its manifest, which is written last, makes it complete.

The manifest lists the shards of all parts with their checksums, the classes, the counts and the
sizes. `rows.npz` states where each image is: `row` [N] int64 counts through all shards as if each
held the same number of images, `label` [N] int32, and `is_test` [N] uint8.
"""

import collections
import hashlib
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.data import contact_sheet
from trainer.data.preparing import duplicates
from trainer.data.preparing.part import BLOCK_BYTES, FORMAT, PART_NAME, Part, read_json
from trainer.data.preparing.rows import ROW
from trainer.data.preparing.targets import Target
from trainer.data.reader import Report
from trainer.errors import DataError

MANIFEST, ROWS, DUPLICATES, PREVIEW = "manifest.json", "rows.npz", "duplicates.json", "preview.png"
CHECKSUM = "sha256"  # of the manifest without this entry
Facts = dict[str, Any]


def checksum(manifest: Facts) -> str:
    """Returns the checksum of a manifest, which may contain one."""
    rest = {key: value for key, value in manifest.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def join(target: Target, place: str, report: Report) -> Facts:
    """Writes the manifest of a set whose parts are complete, and what belongs to it.

    Args:
      target: the folder of the parts.
      place: how messages name it.
      report: called with the completed share in [0, 1] and a description.

    Returns:
      The manifest.

    Raises:
      DataError: if a part is missing or damaged, or the parts do not fit together.
      StorageError: if a file cannot be written.
    """
    sizes = target.sizes()
    parts = _read_parts(target, sizes, place)
    joined = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    packed = hashlib.sha256(target.get(ROWS) or b"").hexdigest()
    known = read_json(target, MANIFEST) or {}
    if (known.get("parts_sha256"), known.get("rows_sha256")) == (joined, packed):
        return known
    target.remove(MANIFEST)  # so that it does not describe files that are now replaced
    class_names = _class_names(parts)
    shards = [shard for part in parts for shard in part["shards"]]
    records = _read_records(target, sizes, parts, class_names, place)
    good = np.flatnonzero(records["is_good"])
    if not len(good):
        raise DataError(f"{place}: none of the pictures can be read. Replace the files.")
    numbers = np.concatenate([
        n * parts[0]["rows_per_shard"] + np.arange(shard["rows"]) for n, shard in enumerate(shards)
    ])  # fmt: skip
    rows = _pack(row=numbers[good], label=records["label"][good], is_test=records["is_test"][good])
    report(0.0, "Looking for duplicates")
    groups = {
        "exact": duplicates.exact(records["digest"][good]),
        "near": duplicates.near(records["thumb"][good]),
    }
    found = _named(target, shards, good, groups)
    manifest = {
        "format": FORMAT,
        "images": len(good),
        "shape": parts[0]["shape"],
        "fit": parts[0]["fit"],
        "rows_per_shard": parts[0]["rows_per_shard"],
        "block_bytes": BLOCK_BYTES,
        **_counts(records[good], class_names),
        "settings": parts[0]["settings"],
        "enlarged": sum(part["enlarged"] for part in parts),
        "skipped": [name for part in parts for name in part["skipped"]],
        "duplicates": {kind: _extra(found[kind]) for kind in found},
        "rows_sha256": hashlib.sha256(rows).hexdigest(),
        "parts_sha256": joined,
        "shards": shards,
    }
    target.put(ROWS, rows)
    target.put(DUPLICATES, json.dumps(found).encode())
    target.put(PREVIEW, _preview(target, manifest, records[good], numbers[good]))
    target.put(MANIFEST, json.dumps({**manifest, CHECKSUM: checksum(manifest)}).encode())
    return manifest


def _read_parts(target: Target, sizes: dict[str, int], place: str) -> list[Facts]:
    """Returns the descriptions of all parts."""
    begun = {name.partition("/")[0] for name in sizes if PART_NAME.match(name)}
    counts = {int(match[2]) for name in begun if (match := PART_NAME.fullmatch(name))}
    if len(counts) != 1:
        what = "no parts" if not counts else f"parts of {' and of '.join(map(str, counts))}"
        raise DataError(f"{place} holds {what}. Prepare all parts with the same --shard=N/COUNT.")
    (count,) = counts
    wanted = [Part(index, count) for index in range(count)]
    parts = [read_json(target, f"{part.name}/part.json") for part in wanted]
    missing = [part for part, facts in zip(wanted, parts) if facts is None]
    if missing:
        flags = ", ".join(f"--shard={part.index}/{part.count}" for part in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"{place}: parts are not complete. Prepare {flags}{more} first.")
    found = [part for part in parts if part is not None]
    for part, facts in zip(wanted, found):
        for key in ("format", "settings", "shape", "fit", "rows_per_shard"):
            if facts.get(key) != found[0].get(key):
                raise DataError(
                    f"{place}: {part.name} has {key} {json.dumps(facts.get(key))}, but the first "
                    f"part has {json.dumps(found[0].get(key))}. Prepare all parts with the same "
                    "flags, among them --image_size, --fit and --channels."
                )
        if facts.get("source") != found[0].get("source"):
            raise DataError(
                f"{place}: {part.name} and the first part were prepared from different lists of "
                "pictures, so some might be missing or be there twice. Prepare both again from "
                "the same pictures."
            )
    if len({bool(facts["classes"]) for facts in found}) > 1:
        raise DataError(
            f"{place}: some parts have classes and others do not. Label all pictures or none."
        )
    return found


def _class_names(parts: Sequence[Facts]) -> list[str]:
    """Returns the classes of all parts, in the order of the parts if they agree."""
    if all(part["classes"] == parts[0]["classes"] for part in parts):
        return list(parts[0]["classes"])
    names = {name for part in parts for name in part["classes"]}
    if all(map(str.isdecimal, names)):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _read_records(
    target: Target, sizes: dict[str, int], parts: Sequence[Facts], names: list[str], place: str
) -> np.ndarray:
    """Returns the records [N] ROW of all pictures, with labels as indices into `names`."""
    found = []
    for part in parts:
        numbers = np.array([names.index(name) for name in part["classes"]] or [0], np.int32)
        for shard in part["shards"]:
            content = target.get(f"{shard['name']}.rows") or b""
            image_bytes = shard["rows"] * math.prod(part["shape"])
            is_whole = sizes.get(f"{shard['name']}.u8") == image_bytes
            if hashlib.sha256(content).hexdigest() != shard["rows_sha256"] or not is_whole:
                raise DataError(
                    f"{place}: {shard['name']} is damaged. Remove its files and run the same "
                    "prepare command again."
                )
            records = np.frombuffer(content, ROW).copy()
            records["label"] = numbers[records["label"]]
            found.append(records)
    return np.concatenate(found)


def _pack(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _counts(records: np.ndarray, class_names: list[str]) -> Facts:
    """Counts images by split and by class, and the sizes [height, width] of the pictures."""
    is_test = records["is_test"].astype(bool)
    by_class = np.bincount(records["label"], minlength=len(class_names)).tolist()
    pairs = collections.Counter(zip(records["height"].tolist(), records["width"].tolist()))
    by_area = sorted(pairs, key=lambda pair: pair[0] * pair[1])
    return {
        "splits": {"train": int((~is_test).sum()), "test": int(is_test.sum())},
        "classes": dict(zip(class_names, by_class)),
        "sizes": {
            "smallest": by_area[0],
            "largest": by_area[-1],
            "most_common": pairs.most_common(1)[0][0],
            "different": len(pairs),
        },
    }


def _named(
    target: Target, shards: Sequence[Facts], good: np.ndarray, groups: dict[str, list[np.ndarray]]
) -> dict[str, list[list[str]]]:
    """Returns the names of the pictures of groups of images."""
    rows = {int(good[n]) for found in groups.values() for group in found for n in group}
    names: dict[int, str] = {}
    first = 0
    for shard in shards:
        mine = [row for row in range(first, first + shard["rows"]) if row in rows]
        if mine:
            listed = (read_json(target, f"{shard['name']}.json") or {}).get("names", [])
            names.update((row, str(listed[row - first])) for row in mine)
        first += shard["rows"]
    return {
        kind: [[names[int(good[n])] for n in group] for group in found]
        for kind, found in groups.items()
    }


def _extra(groups: list[list[str]]) -> int:
    """Returns how many pictures are in groups, not counting one of each group."""
    return sum(len(group) - 1 for group in groups)


def _preview(target: Target, manifest: Facts, records: np.ndarray, numbers: np.ndarray) -> bytes:
    """Draws some of the images."""
    names = list(manifest["classes"])
    sheet_rows = contact_sheet.choose(records["label"], names)
    wanted = sorted({n for row in sheet_rows for n in row.pictures})
    shape, per_shard = manifest["shape"], manifest["rows_per_shard"]
    images: dict[int, np.ndarray] = {}
    size = math.prod(shape)
    for n in wanted:
        shard, offset = divmod(int(numbers[n]), per_shard)
        name = f"{manifest['shards'][shard]['name']}.u8"
        content = target.get_range(name, offset * size, size)
        images[n] = np.frombuffer(content, np.uint8).reshape(shape)
    file = io.BytesIO()
    contact_sheet.draw(sheet_rows, images.get).save(file, "PNG")
    return file.getvalue()
