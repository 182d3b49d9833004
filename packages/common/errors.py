"""Error classes for what a user can correct, and the traceback file of everything else."""

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
