"""Files of torch.save -> the values in them, looked through before torch opens them.

torch.load(weights_only=True) runs no code of a file, but a few bytes can still make it take
gigabytes or hours: compressed entries, calls that allocate, tuples that hold each other twice, and
are hashed. So the zip must be one that torch.save wrote (`check_zip`), and its pickle may only do
what a state dict needs (`check_pickle`), which is told from its opcodes. pickle itself is never
imported. Read next: checkpoints.py and train/state.py, which know what the values mean.
"""

from __future__ import annotations

import os
import re
import zipfile
from typing import Any, BinaryIO

from .errors import BackendUnavailable, ModelFormatError
from .tensorfile import show

TORCH_FLOOR = (2, 10)  # CVE-2025-32434 and CVE-2026-24747 broke the safe loading of older ones
MAX_PICKLE_BYTES = 1 << 20  # of one file; a U-Net's takes 20 KB, a training's state 30 KB
MAX_OPCODES = 1 << 17  # of one file; a training's state takes 10,000
MAX_STACK = 1 << 14  # values that wait for their container: 2000 of a dict, and few levels of them
MAX_TEXT_BYTES = 1 << 16
MAX_NAME_BYTES = 128  # of a global; re and import would see all of a longer one
MAX_DIRECTORY_BYTES = 1 << 20  # of a zip; a U-Net's takes 10 KB
MAX_ENTRIES = 8192
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what a file that is no zip begins with


def load(stream: BinaryIO, where: str, device: Any = "cpu") -> Any:
    """What torch.save wrote into a file: plain values, dicts, lists and tensors.

    Raises ModelFormatError for anything else; BackendUnavailable when torch is missing or too old.
    """
    stream.seek(0)
    if stream.read(2) == b"PK":
        check_pickle(check_zip(stream, where), where)
    else:
        _check_legacy(stream, where)
    torch = torch_of(where)
    stream.seek(0)
    try:
        return torch.load(stream, map_location=device, weights_only=True, mmap=False)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # pickle's own class cannot be named here: pickle is never imported
        raise ModelFormatError(
            f"{where}: torch.load(weights_only=True) refuses it ({_reason(error)}); "
            "there is no other way to read it here"
        ) from None


def torch_of(where: str) -> Any:
    try:
        import torch
    except ImportError:
        raise BackendUnavailable(
            f"{where}: a .pth file needs torch 2.10 or newer: pip install 'pix2pix_fast[train]'"
        ) from None
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < TORCH_FLOOR:
        raise BackendUnavailable(
            f"{where}: a .pth file needs torch 2.10 or newer (safe loading was repaired), found "
            f"{torch.__version__}: pip install 'pix2pix_fast[train]'"
        )
    return torch


def is_whole(tensor: Any) -> bool:
    """Whether every element has a place: a stride of 0 lets a few bytes pose as gigabytes."""
    held: int = tensor.untyped_storage().nbytes()
    return int(tensor.numel() * tensor.element_size()) <= held


def _reason(error: Exception) -> str:
    """torch's own words, without its advice to load unsafely."""
    text = str(error)[:2000]  # the patterns take the square of its length
    for pattern in (
        r"(?:Unsupported global: )?GLOBAL (\S+) was not an allowed global",
        r"(Unsupported \w+ [^.\n]*)",
        r"(Trying to [^.\n]*)",
        r"(\S+ whose module \S+ is blocked)",
    ):
        if match := re.search(pattern, text):
            found = match[1]
            return f"it calls {show(found)}" if pattern.startswith("(?:Uns") else show(found)
    if "Weights only load failed" in text:
        return "its pickle is broken or asks for more than weights"
    return show(text.splitlines()[0] if text else type(error).__name__)


# -- the pickle ------------------------------------------------------------------------------------
#
# A stack machine that knows kinds instead of values. "s": a text, number, bool or None. "d": a dict.
# "r": what a call made, a tensor or storage, which may be walked through for hours. "t": a tuple;
# "e": the empty one; "q": one of "s" alone; "p": one that may be walked through, of one dict, one
# plain tuple, or one list of lists (Python 2's OrderedDict). A list is the set of what is in it, "l"
# being lists. A global is its dotted name. What was fetched from the memo, so that it is in two
# places, is in capitals.

GLOBALS = re.compile(
    r"collections\.(?:OrderedDict|Counter)|torch\._utils\._rebuild_(?:tensor(?:_v[23])?|parameter)"
    r"|torch\.(?:storage\.|cuda\.)?\w*Storage|torch\.(?:Size|device|serialization\._get_layout)"
    r"|torch\.(?:u?int|float|bfloat|complex|bool|double|half|long|short|char|byte)\w*"
)
CALLED = re.compile(
    r"collections\.(?:OrderedDict|Counter)|torch\._utils\.\w+"
    r"|torch\.(?:Size|device|serialization\._get_layout)"
)
CONSTANTS = {ord(c): "s" for c in "N\x88\x89"} | {ord(")"): "e", ord("}"): "d"}
NUMBERS = {ord("K"): 1, ord("M"): 2, ord("J"): 4, ord("G"): 8}  # bytes of each
TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
PUTS, GETS = {ord("q"): 1, ord("r"): 4}, {ord("h"): 1, ord("j"): 4}
TEXTS = {ord("X"): 4, ord("U"): 1}
Kind = str | set[str]


def check_pickle(data: bytes, where: str, at: int = 0) -> int:
    """Where the pickle that begins at `at` ends. ModelFormatError if it does what no state dict
    needs, or more of it than any."""
    stack: list[Kind] = []
    marks: list[int] = []
    memo: dict[int, Kind] = {}
    begin = at

    def refuse(why: str) -> ModelFormatError:
        return ModelFormatError(
            f"{where}: its pickle {why}, at byte {at - begin}; save the generator's state dict alone"
        )

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        if at > len(data):
            raise refuse("is cut short, or longer than any state dict's")
        return data[at - count : at]

    def number(count: int) -> int:
        return int.from_bytes(take(count), "little")

    def pop(count: int) -> list[Kind]:
        if count > len(stack) - (marks[-1] if marks else 0):
            raise refuse("takes values that are not there")
        found = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return found

    def to_mark() -> list[Kind]:
        if not marks:
            raise refuse("takes values that are not there")
        found = pop(len(stack) - marks[-1])
        marks.pop()
        return found

    def tuple_of(items: list[Kind]) -> Kind:
        # each place of such a tuple doubles what there is to hash or print
        if not {"T", "P", "Q"}.isdisjoint(item for item in items if isinstance(item, str)):
            raise refuse("puts one tuple into others")
        if all(item in ("s", "S") for item in items):
            return "q"
        return "p" if len(items) == 1 and items[0] in ("d", "e", "q", set(), {"l"}) else "t"

    def put_into(keys: list[Kind], count: int) -> None:
        if count % 2 or any(key not in ("s", "S") for key in keys):
            raise refuse("has dict keys that are neither texts nor numbers")

    def append(items: list[Kind]) -> None:
        target = pop(1)[0]
        if isinstance(target, set):
            target.update("l" if isinstance(item, set) else item for item in items)
        stack.append(target)

    if take(2) != b"\x80\x02":
        raise refuse("is not of protocol 2, which torch.save writes without pickle_protocol=")
    for _ in range(MAX_OPCODES):
        code = take(1)[0]
        if code == ord("."):
            if len(stack) != 1 or marks:
                raise refuse("ends too early")
            return at
        if code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code == ord("]"):
            stack.append(set())
        elif code in NUMBERS:
            take(NUMBERS[code])
            stack.append("s")
        elif code == 0x8A:  # a long number: of more than 8 bytes many have the same hash
            if number(1) > 8:
                raise refuse("has a number of more than 8 bytes")
            take(data[at - 1])
            stack.append("s")
        elif code in TEXTS:
            length = number(TEXTS[code])
            if length > MAX_TEXT_BYTES:
                raise refuse(f"has a text of {length} bytes")
            take(length)
            stack.append("s")
        elif code == ord("c"):
            stack.append(_global(data, at, where))
            at = data.index(b"\n", data.index(b"\n", at) + 1) + 1
        elif code in PUTS:
            place = number(PUTS[code])
            if not stack:
                raise refuse("takes values that are not there")
            memo[place] = stack[-1]
        elif code in GETS:
            place = number(GETS[code])
            if place not in memo:
                raise refuse("takes values that are not there")
            kind = memo[place]
            stack.append("L" if isinstance(kind, set) else kind.upper() if len(kind) == 1 else kind)
        elif code == ord("("):
            marks.append(len(stack))
        elif code == ord("t"):
            stack.append(tuple_of(to_mark()))
        elif code in TUPLES:
            stack.append(tuple_of(pop(TUPLES[code])))
        elif code == ord("a"):
            append(pop(1))
        elif code == ord("e"):
            append(to_mark())
        elif code == ord("s"):
            put_into(pop(2)[:1], 2)
        elif code == ord("u"):
            items = to_mark()
            put_into(items[::2], len(items))
        elif code == ord("Q"):  # a storage
            pop(1)
            stack.append("r")
        elif code == ord("b"):  # what torch.load does with it depends on the object's type
            if pop(1)[0] in ("D", "L", "R"):  # it would be copied at each place
                raise refuse("gives one state to many")
        elif code == ord("R"):
            called, given = pop(2)
            if not isinstance(called, str) or not CALLED.fullmatch(called):
                known = isinstance(called, str) and "." in called
                raise refuse(f"calls {show(called) if known else 'what is no function'}")
            walks = called.startswith("collections.") or called == "torch.Size"
            if given not in (("e", "E", "p") if walks else ("e", "E", "p", "q", "Q", "t", "T")):
                raise refuse(f"calls {called} with what no state dict passes")
            stack.append("r")
        else:
            raise refuse(f"has the opcode {show(chr(code))}, which torch.save does not write")
        if len(stack) + len(marks) > MAX_STACK:
            raise refuse(f"is nested or long beyond {MAX_STACK} values that wait")
    raise refuse(f"has more than {MAX_OPCODES} opcodes")


def _global(data: bytes, at: int, where: str) -> str:
    """The dotted name of the global at `at`, one of those that a state dict needs."""
    match = re.compile(rb"([\w.]+)\n([\w.]+)\n").match(data, at, at + MAX_NAME_BYTES)
    if match is None:
        raise ModelFormatError(f"{where}: its pickle names a global that cannot be read")
    name = f"{match[1].decode()}.{match[2].decode()}"
    if not GLOBALS.fullmatch(name):
        raise ModelFormatError(
            f"{where}: its pickle asks for {show(name)}, which no state dict needs; "
            "save the generator's state dict alone"
        )
    return name


def _check_legacy(stream: BinaryIO, where: str) -> None:
    """The five pickles of a file from before the zips: a number, a number, sizes, the values, the
    storages' names; what follows them are the storages."""
    stream.seek(0)
    data = stream.read(MAX_PICKLE_BYTES)
    if not data.startswith(MAGIC):
        raise ModelFormatError(f"{where}: is a bare pickle: torch.save did not write it")
    at = len(MAGIC)
    for _ in range(4):
        at = check_pickle(data, where, at)


# -- the zip ---------------------------------------------------------------------------------------


def check_zip(stream: BinaryIO, where: str) -> bytes:
    """The pickle of a zip. Refuses, before anything is inflated or torch imported, a zip that torch.save did not write.

    torch stores its records uncompressed, so the bytes unpacked can be no more than the file.
    """
    size = _check_zip_end(stream, where)
    try:
        with zipfile.ZipFile(stream) as archive:
            infos = archive.infolist()
    except Exception as error:  # zipfile leaks several kinds
        raise ModelFormatError(f"{where}: broken zip: {show(str(error))}") from None
    names = [info.filename for info in infos]
    if len({name.lower() for name in names}) != len(names):  # torch's reader ignores the case
        raise ModelFormatError(f"{where}: zip: an entry occurs twice")
    if any(info.filename != info.orig_filename for info in infos):
        raise ModelFormatError(f"{where}: zip: an entry's name has a NUL character")
    if len({name.partition("/")[0] for name in names}) > 1:  # torch takes the first one's
        raise ModelFormatError(f"{where}: zip: its entries lie in several folders, expected one")
    # before its entries: torch.jit compresses its code
    if any("/code/" in name or name.lower().endswith("/constants.pkl") for name in names):
        raise ModelFormatError(f"{where}: is a TorchScript program, expected a state dict")
    for info in infos:
        entry = f"{where}: zip entry {show(info.filename)}"
        if info.flag_bits & 1:
            raise ModelFormatError(f"{entry} is encrypted")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ModelFormatError(
                f"{entry} is compressed to {info.compress_size} of {info.file_size} bytes; "
                "torch.save stores"
            )
        if info.filename.lower().endswith("data.pkl") and info.file_size > MAX_PICKLE_BYTES:
            raise ModelFormatError(
                f"{entry} has {info.file_size} bytes, at most {MAX_PICKLE_BYTES} are accepted"
            )
    if sum(info.file_size for info in infos) > size:
        raise ModelFormatError(f"{where}: zip: its entries overlap")
    found = (one for one in infos if re.fullmatch(r"[^/]+/data\.pkl", one.filename))
    values = next(found, None)
    if values is None:
        raise ModelFormatError(f"{where}: is a zip without */data.pkl: torch.save did not write it")
    # where torch's reader looks; zipfile's would ask for a checksum, which torch.save may leave out
    stream.seek(values.header_offset + 26)
    lengths = stream.read(4)
    stream.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
    return stream.read(values.file_size)


def _check_zip_end(stream: BinaryIO, where: str) -> int:
    """Bound the directory before zipfile makes an object of each entry; return the file's size."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 42))
    tail = stream.read(42)
    end = tail[-22:]
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ModelFormatError(
            f"{where}: zip without its end record in the last 22 bytes: cut short?"
        )
    place = size - 22  # of the end record, the 64-bit one where there is one
    entries, length, begin = (
        int.from_bytes(end[a:b], "little") for a, b in ((10, 12), (12, 16), (16, 20))
    )
    if tail[:4] == b"PK\x06\x07":  # torch always adds the 64-bit end record
        place = size - 98
        stream.seek(max(0, place))
        wide = stream.read(56)
        if wide[:4] != b"PK\x06\x06" or int.from_bytes(tail[8:16], "little") != place:
            raise ModelFormatError(f"{where}: zip: its 64-bit end record is not where it must be")
        entries, length, begin = (
            int.from_bytes(wide[a : a + 8], "little") for a in (32, 40, 48)
        )
    if entries > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        raise ModelFormatError(
            f"{where}: zip with {entries} entries in a directory of {length} bytes, at most "
            f"{MAX_ENTRIES} in {MAX_DIRECTORY_BYTES} are accepted"
        )
    # zipfile looks just before the end record, torch where the record says: both must be one place
    if begin + length != place:
        raise ModelFormatError(
            f"{where}: zip: its directory of {length} bytes at {begin} does not end at its end "
            f"record, which is at {place}"
        )
    return size
