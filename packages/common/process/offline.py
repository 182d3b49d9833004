"""Environment variables that keep the libraries from calling home.

Set before any library is imported, where a command, a rank or a Ray cluster is started; the processes they start
inherit them. In a program that imports our packages, before the library that would. What the user has set stays.
"""

import os

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime writes a device id into the home folder, and uploads
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # insightface's optional library asks the package index
    "DENO_NO_UPDATE_CHECK": "1",  # yt-dlp's JavaScript runtime
}
# Only in our own processes: a program that imports our packages may want the hub for itself.
NO_HUB = {"HF_HUB_OFFLINE": "1"}
_own: set[str] = set()


def refuse_telemetry() -> None:
    """Set `NO_TELEMETRY` where the user has set nothing."""
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)


def stay_offline() -> None:
    """Also keep the model hub from being asked; for the start of a command, before the hub's library is imported."""
    refuse_telemetry()
    _own.update(name for name in NO_HUB if name not in os.environ)
    os.environ.update({name: NO_HUB[name] for name in _own})


def go_online() -> None:
    """Undo `stay_offline` for the one command that asks the hub; what the user has set stays."""
    for name in _own:
        os.environ.pop(name, None)
    _own.clear()


def offline_environment() -> dict[str, str]:
    """The variables as they are now, for processes that do not inherit them."""
    return {name: os.environ[name] for name in (*NO_TELEMETRY, *NO_HUB) if name in os.environ}
