"""Error classes for what a user can correct, and the traceback file of everything else."""

import re
import traceback
from pathlib import Path

# Library -> the extras of pyproject.toml that install it. What the base installation brings is not listed.
EXTRA_OF = {
    "cv2": ("curate", "eval"),
    "decord": ("curate",),
    "deepspeed": ("train",),
    "insightface": ("curate", "eval"),
    "jinja2": ("curate", "eval"),
    "markupsafe": ("curate", "eval"),
    "matplotlib": ("curate", "train", "eval"),
    "onnx": ("curate", "eval"),
    "onnxruntime": ("curate", "eval"),
    "ray": ("cluster",),
    "scipy": ("curate", "eval"),
    "sentencepiece": ("curate", "eval"),
    "skimage": ("eval",),
    "tensorboard": ("train",),
    "webdataset": ("train",),
    "yt_dlp": ("curate",),
    "yt_dlp_ejs": ("curate",),
}


class UserError(Exception):
    """Base of all errors whose sentence tells the user what to correct; a traceback would not help.

    Subclasses also derive from the built-in error they are a case of, so that `except ValueError` finds them.
    """


class InputError(UserError, ValueError):
    """An option, a setting or a file of the user holds something else than was expected."""


class DamagedFileError(InputError):
    """A file that an earlier command wrote is empty, cut short or overwritten."""


# What brings a file back, by the end of its path; the first that fits.
REMEDIES = (
    (
        r"(clips|sources|tracks)\.parquet",
        "delete it and run `omniavatar curate --force`; finished units are taken from the ledger",
    ),
    (r"shards/index\.parquet", "delete it and run `omniavatar latents`, which merges it again from its parts"),
    (
        r"shards/[^/]+",
        "delete the folder of the shards and run `omniavatar latents`; what is encoded already is taken from the cache",
    ),
    (r"ledger/format\.json", "restore it from a copy, or move the ledger folder away to compute all again"),
    (r"ledger/[^/]+\.status\.json", "delete it; it only shows progress"),
    (r"ledger/[^/]+", "delete it and run the same command again; only the units it recorded are computed again"),
    (r"videos/manifest\.parquet", "delete it and run `omniavatar run --from generate`, or import the list again"),
    (r"videos/.+\.json", "delete it with its video and make the video again"),
    (r"logs/steps/[^/]+", "delete it and run the step of its name again, which goes on where it was"),
    (r"logs/train[^/]*\.jsonl", "delete it; only the log of the training so far is lost"),
    (
        r"(recipe\.yaml|versions\.json)",
        "delete it; the next step of the flow, such as `omniavatar eval`, writes it again",
    ),
    (r"run\.duckdb", "delete it and run `omniavatar db`"),
    (r"report/(faults\.json|test_fingerprints\.jsonl)", "delete it and run `omniavatar curate --force`"),
    (r"report/plan\.json", "delete it and run `omniavatar plan`"),
    (r"report/card\.(json|md)", "delete it and run `omniavatar eval card`"),
    (r"report/[^/]+", "delete it and run `omniavatar eval --force`"),
    (r"cache/.+", "delete it and run the same command again, which makes it anew"),
    (
        r"checkpoints/(adapter|base|best|adapters/[^/]+)/[^/]+",
        "copy the export of another checkpoint over it, or train on",
    ),
    (r"checkpoints/state/origin\.json", "delete it; the training then goes on without comparing its settings"),
    (
        r"versions/[^/]+",
        "restore it from a copy, or delete the .json and the .parquet of its name; "
        "`omniavatar freeze` writes a version of the clips there are now",
    ),
)


def damaged(path: Path | str, why: object, what: str = "is damaged") -> DamagedFileError:
    """The error for a file that cannot be read: what is wrong with it, in one short line, and what to do."""
    text = Path(path).as_posix()
    reason = shorten(" ".join(str(why).split()).rstrip("."))
    advice = (remedy for pattern, remedy in REMEDIES if re.search(rf"(^|/){pattern}$", text))
    remedy = next(advice, "restore it from a copy, or delete it and run the command that writes it")
    return DamagedFileError(f"{path} {what} ({reason}); {remedy}.")


def shorten(text: str, length: int = 120) -> str:
    """A text for an error message: what is longer is cut in the middle."""
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 3 :]}"


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named, or that an earlier step writes, does not exist."""


class ExistingFileError(UserError, FileExistsError):
    """A file or folder to be written exists, and is not overwritten."""


class BusyError(UserError, RuntimeError):
    """Another process is writing the same file or stage."""


class MissingExtraError(UserError, ModuleNotFoundError):
    """A command needs a library of an extra that is not installed."""


def needs_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error to show instead, with the command that installs the library; None for a module no extra brings."""
    library = (error.name or "").partition(".")[0]
    if library not in EXTRA_OF:
        return None
    commands = " or ".join(f"pip install 'omniavatar-stack[{extra}]'" for extra in EXTRA_OF[library])
    return MissingExtraError(f"This command needs {library}, which is not installed; add it with {commands}.")


def load_reason(folder: Path, error: Exception) -> str:
    """Why transformers did not load a folder, as half a sentence; its loaders refuse code that lies in the folder."""
    if code := sorted(file.name for file in folder.glob("*.py")):
        return f"it needs code of its own, {', '.join(code[:3])}, which is never run"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def write_traceback(error: BaseException, file: Path) -> str:
    """Write the message of an error and its traceback to a file; returns the message as one line."""
    sentence = " ".join(str(error).split()) or type(error).__name__
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(sentence + "\n\n" + "".join(traceback.format_exception(error)), "utf-8")
    return sentence
