"""What the system could not do, as one sentence with the remedy."""

from __future__ import annotations

import errno
import os

from pellucid.core.errors import first_line, shown

# errno -> (what is wrong with the file, what to do, exit status): 2 where another path on the command line helps.
_SENTENCES = {
    errno.ENOSPC: ("the disk is full", "free some space, or write elsewhere with --out", 1),
    errno.EDQUOT: ("the quota of the disk is used up", "free some space, or write elsewhere with --out", 1),
    errno.EFBIG: ("the file is larger than this disk can hold", "write elsewhere with --out", 1),
    errno.EIO: ("the disk failed", "check it, or write elsewhere with --out", 1),
    errno.EACCES: ("permission is denied", "change its permissions, or name another path", 2),
    errno.EPERM: ("permission is denied", "change its permissions, or name another path", 2),
    errno.EROFS: ("the disk can only be read", "write elsewhere with --out", 2),
    errno.ENOENT: ("there is no such file or folder", "check the path", 2),
    errno.EEXIST: ("there is something of that name already", "name another path", 2),
    errno.EISDIR: ("this is a folder", "name a file", 2),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "check the path", 2),
    errno.ENAMETOOLONG: ("the name is too long", "name a shorter path", 2),
    errno.ELOOP: ("its links lead in a circle", "name another path", 2),
    errno.EMFILE: ("too many files are open", "raise the limit with ulimit -n, or give fewer --workers", 1),
    errno.ENFILE: ("too many files are open on this machine", "close other programs", 1),
    errno.ENOMEM: ("there is too little memory", "give a smaller --batch-size", 1),
}


def sentence_of(error: OSError, fallback: str = "") -> tuple[str, int]:
    """The sentence to print for `error`, and the exit status.

    Args:
        error: what was raised.
        fallback: the path that was being written, for an error that names none, as one of a full disk does.
    """
    path = error.filename2 or error.filename or fallback
    name = f"{shown(os.fsdecode(path), 300)}: " if isinstance(path, str | bytes | os.PathLike) and path else ""
    wrong, remedy, status = _SENTENCES.get(
        error.errno or 0, (first_line(error) if error.strerror is None else error.strerror, "", 1)
    )
    return f"{name}{wrong}{': ' if remedy else '.'}{remedy}{'.' if remedy else ''}", status
