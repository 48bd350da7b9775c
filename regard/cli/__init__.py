"""The command line, `regard VERB ...`: a module for each verb, combined in `app`."""

from __future__ import annotations

import os
import sys

from regard.core.errors import RegardError, need

TRACEBACK = "REGARD_TRACEBACK"


def main() -> None:
    """Run the command line; print errors in one sentence, with exit code 2 if users can fix them.

    `REGARD_TRACEBACK=1` shows the traceback.
    """
    if "" not in sys.path:  # find `module:Class` in the working folder, as with `python -m`
        sys.path.insert(0, "")
    try:
        for package in ("typer", "rich"):
            need(package, "see", "draws the command line")
        from regard.cli.app import command
        from regard.cli.naming import need_words, usage_error

        need_words(sys.argv[1:])
        try:
            code = command().main(prog_name="regard", standalone_mode=False)
        except Exception as error:
            sentence = usage_error(error)
            if sentence is None:
                raise
            _end(sentence, 2)
        sys.exit(code if isinstance(code, int) else 0)
    except RegardError as error:
        _end(f"regard: {error}", 2, error)
    except BrokenPipeError:  # the reader, such as `head`, is gone
        sys.stderr.close()
        sys.exit(141)
    except KeyboardInterrupt:
        _end("regard: stopped", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _end(
            f"regard: {where}{error.strerror or error}. Fix: name another file or "
            "folder, or make room there",
            2, error,
        )  # fmt: skip
    except MemoryError as error:
        _end("regard: out of memory. Fix: read a shorter text, or a smaller model", 2,
             error)  # fmt: skip
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        _end(
            f"regard: a bug in Regard, or in what it calls: {type(error).__name__}: {said}. "
            f"{TRACEBACK}=1 shows where; please report it",
            1, error,
        )  # fmt: skip


def brief(sentence: str, most: int = 500) -> str:
    """Return a sentence on one line; of what was typed at great length only the two ends.

    >>> brief("got  1 and"), brief("got " + "9" * 5000 + ". Fix: less", 20)
    ('got 1 and', 'got 9 ... 9999. Fix: less')
    """
    line = " ".join(sentence.split())
    if len(line) <= most:
        return line
    start = most // 4
    return f"{line[:start]} ... {line[start - most :].lstrip()}"


def _end(sentence: str, code: int, error: BaseException | None = None) -> None:
    """Print one line and exit; raise instead if the user asks for the traceback."""
    if error is not None and os.environ.get(TRACEBACK, "") not in ("", "0"):
        raise error
    print(brief(sentence), file=sys.stderr)
    sys.exit(code)
