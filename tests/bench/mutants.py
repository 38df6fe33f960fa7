"""Damaged and forged artifacts for mutated_artifacts.py: each drawn by number, the same every time."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

Rng = np.random.Generator
BOMB = 1500 * 2**20
HUGE = [0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**62, 2**63 - 1]
DESCRIPTIONS = [
    *("<f8", ">f4", "<f4", "<f2", "|O", "|V4", "<M8[ns]", "|S4", "<U0", "<U1", "<U99999999", "|b1", "<c16"),
    *("<i8", "<u4", "|u1", "f4", "O", "a5", "", "nonsense", [("a", "<f4")], [("a", "|O")], ("<f4", (1000,))),
    *([("a", "<f4", (99999,))], [], None, 3, "<f16", "<g", "|T"),
]
NAMES = [
    *("../x.npy", "/etc/x.npy", "inputs.npy/", "inputs", "", ".npy", "INPUTS.npy", "x" * 60000 + ".npy"),
    *("meta.npy", "digest.npy", "kernel/x.npy", "features/weights_9.npy", "Eule ä.npy", "a\x01b.npy"),
    *("inputs.npy", "labels.npy", "lam.npy", "weights.npy", "values.npy", "class_names.npy"),
]
TEXTS = [
    "",
    "x",
    "1e999",
    "-1",
    "NaN",
    "linear",
    "network",
    "rbf",
    "encoder",
    "zca",
    "ntk",
    "\u0000",
    "ä" * 999,
]
VALUES: list[Callable[[], Any]] = [
    *(
        lambda v=v: v
        for v in (None, True, -1, 0, 1, 3, 10**6, 10**9, 10**40, 1e308, float("nan"), float("inf"))
    ),
    *(lambda v=v: v for v in (-float("inf"), [], {}, [[]], [1, 2], {"a": 1}, [10**9, 10**9])),
    *(lambda t=t: t for t in TEXTS),
]
Original = dict[str, bytes]  # contents of the members, each an .npy


@cache
def parts_of(content: bytes) -> tuple[Original, list[int], list[tuple[int, int]]]:
    """Of a set that is sound: its members, the places that are no data, and its fields of numbers."""
    return members_of(content), structure(content), fields_of(content)


def members_of(content: bytes) -> Original:
    """Contents of an archive's members, by the name of the array."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename.removesuffix(".npy"): archive.read(info) for info in archive.infolist()}


def pack(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of members, any of whose names may come twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return buffer.getvalue()


def packed(members: Original, method: int = zipfile.ZIP_STORED) -> bytes:
    return pack([(f"{name}.npy", content) for name, content in members.items()], method)


def npy(array: Any, *, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def array_of(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


def digest_of(members: Original) -> bytes:
    """The digest that fits, as the file format defines it: what a forger would write."""
    sha = hashlib.sha256()
    for name in sorted(members):
        if name != "digest":
            value = np.ascontiguousarray(array_of(members[name]))
            sha.update(f"{name}|{value.dtype.str}|{value.shape}|".encode() + value.tobytes())
    return npy(np.array(sha.hexdigest()))


def pick(rng: Rng, values: Any) -> Any:
    values = values if isinstance(values, list) else list(values)
    return values[int(rng.integers(len(values)))]


def some(rng: Rng, most: int) -> int:
    """A number up to a bound, small ones more often."""
    return int(most * rng.random() ** 3)


# --- the file as bytes -------------------------------------------------------------------------------


def structure(content: bytes) -> list[int]:
    """Places that are no array's data: headers of members and of arrays, the directory at the end."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        starts = [info.header_offset for info in archive.infolist()]
        tail = archive.start_dir
    heads = [place for start in starts for place in range(start, min(start + 200, len(content)))]
    return heads + list(range(tail, len(content)))


def flip(rng: Rng, content: bytes, places: list[int] | None = None) -> bytes:
    damaged = bytearray(content)
    for _ in range(1 + some(rng, 8)):
        place = int(rng.integers(len(content))) if places is None else pick(rng, places)
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def cut(rng: Rng, content: bytes) -> bytes:
    start, stop = sorted(int(rng.integers(len(content) + 1)) for _ in range(2))
    return pick(
        rng,
        [
            content[:start],
            content[start:],
            content[:start] + content[stop:],
            content[: len(content) - some(rng, 100) - 1],
            content[:start] + bytes(stop - start) + content[stop:],
            content[:start] + rng.bytes(stop - start) + content[stop:],
            content[:start] + rng.bytes(1 + some(rng, 400)) + content[start:],
            content[:stop] + content[start:],
            content[stop:] + content[:stop],
        ],
    )


def fields_of(content: bytes) -> list[tuple[int, int]]:
    """Place and length of every number in the directory, in local headers, and in the end (repeated)."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos, place = archive.infolist(), archive.start_dir
    fields = []
    for info in infos:
        fields += [(place + at, 2) for at in (4, 6, 8, 10, 28, 30, 32)]
        fields += [(place + at, 4) for at in (16, 20, 24, 42)]
        fields += [(info.header_offset + at, 2) for at in (4, 6, 8, 26, 28)]
        fields += [(info.header_offset + at, 4) for at in (14, 18, 22)]
        place += 46 + len(info.filename.encode()) + len(info.extra) + len(info.comment)
    return fields + [(place + at, size) for at, size in ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2))] * 20


def numbers(rng: Rng, content: bytes, fields: list[tuple[int, int]]) -> bytes:
    """Fields of the archive with other numbers."""
    damaged = bytearray(content)
    for _ in range(1 + some(rng, 3)):
        at, size = pick(rng, fields)
        old = int.from_bytes(damaged[at : at + size], "little")
        new = pick(rng, [pick(rng, HUGE), old + 1, old - 1, 2 * old, int(rng.integers(2**16)), len(content)])
        damaged[at : at + size] = (new % 256**size).to_bytes(size, "little")
    return bytes(damaged)


def overlapping(rng: Rng, content: bytes) -> bytes:
    """Many entries of the directory that share the bytes of one member."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info, start = pick(rng, archive.infolist()), archive.start_dir
    method, size = pick(rng, [(0, info.file_size), (0, 2**32 - 2), (8, 2**31)]), info.file_size
    entries = b""
    count = int(pick(rng, [2, 50, 2000]))
    for number in range(count):
        name = f"{number}.npy".encode() if number else info.filename.encode()
        entries += struct.pack(
            "<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 20, 20, 0, method[0], 0, 0, info.CRC, size, method[1],
            len(name), 0, 0, 0, 0, 0, info.header_offset,
        ) + name  # fmt: skip
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0)
    return content[:start] + entries + end


# --- members -----------------------------------------------------------------------------------------


def shuffled(rng: Rng, members: Original, others: list[Original]) -> bytes:
    """Members removed, renamed, doubled, exchanged, added, packed otherwise."""
    listed = [(f"{name}.npy", content) for name, content in members.items()]
    here, there = (int(rng.integers(len(listed))) for _ in range(2))
    (name, content), (name2, content2) = listed[here], listed[there]
    other = pick(rng, pick(rng, others).items())
    method = zipfile.ZIP_STORED
    match int(rng.integers(10)):
        case 0:
            del listed[here]
        case 1:
            listed[here] = (pick(rng, NAMES), content)
        case 2:
            listed.append((name, pick(rng, [content, content2, b""])))
        case 3:
            listed[here], listed[there] = (name, content2), (name2, content)
        case 4:
            listed.append((pick(rng, NAMES), pick(rng, [content, other[1], b"", rng.bytes(40)])))
        case 5:
            listed[here] = (f"{other[0]}.npy", other[1])
        case 6:
            listed[here] = (name, other[1])
        case 7:
            rng.shuffle(listed)  # pyright: ignore[reportArgumentType]
        case 8:
            method = pick(rng, [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        case 9:
            listed[here] = (
                name,
                pick(rng, [pack(listed), content + rng.bytes(8), content[:-1], content * 2]),
            )
    return pack([(str(name), bytes(content)) for name, content in listed], method)


@cache
def bomb() -> bytes:
    """A deflated .npy of 1.5 GB of zeros; after a full flush every block packs to the same bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = npy_header({"descr": "<f4", "fortran_order": False, "shape": (BOMB // 4,)})
    start = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (BOMB // 2**20) + packer.flush()


def bombed(rng: Rng, members: Original) -> bytes:
    """An archive one of whose members grows to gigabytes when it is unpacked."""
    name, deflated = pick(rng, members), bomb()
    content = bytearray(pack([(f"{other}.npy", members[other]) for other in members if other != name]))
    claimed = int(pick(rng, [BOMB + 128, BOMB + 128, 80, len(deflated), len(members[name])]))
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo(f"{name}.npy")
        archive.writestr(info, deflated)
        local, central = info.header_offset, archive.start_dir
    content = bytearray(buffer.getvalue())
    central = content.rfind(b"PK\1\2")
    for at in (local + 8, central + 10):
        content[at : at + 2] = struct.pack("<H", 8)
    for at in (local + 22, central + 24):
        content[at : at + 4] = struct.pack("<L", claimed)
    return bytes(content)


def npy_header(
    fields: dict[str, Any] | str, version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    text = (fields if isinstance(fields, str) else repr(fields)).encode("utf-8")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<L", (len(text) if length is None else length) % 2**16)
    return b"\x93NUMPY" + bytes(version) + size + text


def headed(rng: Rng, members: Original) -> bytes:
    """An array whose header says something else than its bytes, in an archive that is itself sound."""
    name = pick(rng, members)
    array = array_of(members[name])
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    version, length, text = (1, 0), None, ""
    match int(rng.integers(8)):
        case 0:
            fields["shape"] = pick(
                rng,
                [
                    *((n,) for n in HUGE),
                    *((n, n) for n in HUGE),
                    *((-n, -n) for n in HUGE),
                    *(
                        (array.size,),
                        (*array.shape, 1),
                        (1, *array.shape),
                        array.shape[::-1],
                        (True,),
                        (1.5,),
                    ),
                    *((), (0,), (-1,), None, "x", [array.size], (1,) * 33, (1,) * 65, (0, 2**62), (0, 2**70)),
                ],
            )
        case 1:
            fields["descr"] = pick(rng, DESCRIPTIONS)
        case 2:
            fields["fortran_order"] = pick(rng, [True, 1, 0, None, "False"])
        case 3:
            version = pick(rng, [(2, 0), (3, 0), (0, 0), (9, 9), (255, 255)])
        case 4:
            length = pick(rng, [*HUGE, 1, 9])
        case 5:
            fields[pick(rng, ["extra", "shape ", ""])] = 1
        case 6:
            del fields[pick(rng, list(fields))]
        case 7:
            code = "__import__('os').abort()"
            odd = [
                code,
                "{'descr': " + code + "}",
                "(" * 5000,
                "{" * 9000,
                "[" * 200,
                "1L",
                "{'a': 1L}",
                "\x00" * 40,
            ]
            text = pick(
                rng, [*odd, "{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L)}", "9" * 9000]
            )
    body = pick(rng, [array.tobytes(), array.tobytes(), b"", rng.bytes(1 + some(rng, 500))])
    return packed(members | {name: npy_header(text or fields, version, length) + body})


# --- what a forger writes: the digest fits -------------------------------------------------------------


def forged_array(rng: Rng, members: Original) -> bytes:
    name = pick(rng, [name for name in members if name not in ("meta", "digest")])
    array = array_of(members[name])
    changes: list[Callable[[], Any]] = [
        lambda: array.T,
        lambda: array[:1] if array.ndim else array[None],
        lambda: array.ravel(),
        lambda: np.stack([array, array]),
        lambda: array[..., :0] if array.ndim else array,
        lambda: np.zeros((0, *array.shape)),
        lambda: array.astype(pick(rng, ["f2", "f4", "f8", ">f8", "i4", "i8", "u1", "bool", "c16", "U5"])),
        lambda: np.full(array.shape, pick(rng, [np.nan, np.inf, -1.0, 1e300, 0.0])),
        lambda: np.array(pick(rng, TEXTS)),
        lambda: np.asfortranarray(array),
        lambda: array[()] if array.ndim == 0 else np.roll(array, 1, axis=0),
    ]
    try:
        changed = {name: npy(pick(rng, changes)())}
    except (TypeError, ValueError):
        changed = {name: npy(np.array("text"))}
    if rng.random() < 0.2:
        changed = {pick(rng, [n.removesuffix(".npy") for n in NAMES if n.endswith(".npy")]): changed[name]}
    return sealed(members | changed)


def sealed(members: Original) -> bytes:
    return packed(members | {"digest": digest_of(members)})


def places_of(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON object."""
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return [path] + [place for key, value in inner for place in places_of(value, (*path, key))]


def forged_meta(rng: Rng, members: Original) -> bytes:
    meta = json.loads(str(array_of(members["meta"])))
    whole = str(array_of(members["meta"]))
    kinds = [place for place in places_of(meta) if {"features", "kernel", "preprocess"} & set(place[:1])]
    for _ in range(1 + some(rng, 3)):
        *outer, last = pick(rng, kinds if rng.random() < 0.7 else places_of(meta)[1:])
        part = meta
        try:
            for key in outer:
                part = part[key]
            if isinstance(part, dict) and rng.random() < 0.15:
                part.pop(last, None)
            else:
                part[last] = copy.deepcopy(pick(rng, VALUES)())
        except (KeyError, TypeError, IndexError):  # an earlier change took that part away
            continue
    text = json.dumps(meta)
    if rng.random() < 0.1:
        deep = int(pick(rng, [10, 900, 100_000]))
        odd = [
            "[" * deep,
            "[" * deep + "]" * deep,
            '{"a":' * deep + "1" + "}" * deep,
            "9" * 5000,
            whole[:-1],
            "",
        ]
        text = pick(
            rng, [*odd, whole + "}", "null", "[]", '"meta"', "\ud800", whole.replace("3", "9" * 5000)]
        )
    return sealed(members | {"meta": npy(np.array(text))})


def foreign(rng: Rng, content: bytes, others: list[bytes]) -> bytes:
    """Files of other kinds, and sets inside or behind something else."""
    other = pick(rng, others)
    pickled = npy(np.array([{"a": 1}], dtype=object), pickled=True)
    return pick(
        rng,
        [
            *(
                b"",
                b"PK",
                b"PK\3\4",
                b"PK\5\6" + bytes(18),
                b"text",
                zlib.compress(content),
                pickled,
                b"\x80\x04N.",
            ),
            *(npy(np.ones(3)), pack([("set.npz", content)]), pack([("inputs.npy", content)])),
            *(content + other, other[:50] + content, rng.bytes(30) + content, content + rng.bytes(30)),
            *(content + content, content[:-2] + struct.pack("<H", len(other)) + other),
            pack([(f"{n}.npy", pickled if n == "inputs" else c) for n, c in members_of(content).items()]),
        ],
    )


Maker = Callable[[Rng, bytes, list[bytes]], bytes]
# How often of a hundred, and how: from the set itself, and the others.
KINDS: dict[str, tuple[int, Maker]] = {
    "bits flipped": (14, lambda rng, own, _: flip(rng, own)),
    "bits of headers flipped": (22, lambda rng, own, _: flip(rng, own, parts_of(own)[1])),
    "cut or overwritten": (14, lambda rng, own, _: cut(rng, own)),
    "numbers of the archive": (14, lambda rng, own, _: numbers(rng, own, parts_of(own)[2])),
    "members exchanged": (
        10,
        lambda rng, own, others: shuffled(rng, parts_of(own)[0], [parts_of(other)[0] for other in others]),
    ),
    "headers of arrays": (12, lambda rng, own, _: headed(rng, parts_of(own)[0])),
    "overlapping members": (2, lambda rng, own, _: overlapping(rng, own)),
    "zip bombs": (2, lambda rng, own, _: bombed(rng, parts_of(own)[0])),
    "forged arrays": (4, lambda rng, own, _: forged_array(rng, parts_of(own)[0])),
    "forged metadata": (4, lambda rng, own, _: forged_meta(rng, parts_of(own)[0])),
    "foreign or nested": (2, foreign),
}
_WEIGHTS = np.cumsum([share for share, _ in KINDS.values()])


def mutant(rng: Rng, name: str, contents: dict[str, bytes]) -> tuple[str, bytes]:
    """A damaged or forged version of one of several sets: its kind, and its content."""
    kind = list(KINDS)[int(np.searchsorted(_WEIGHTS, _WEIGHTS[-1] * rng.random()))]
    others = [content for other, content in contents.items() if other != name]
    return kind, KINDS[kind][1](rng, contents[name], others)
