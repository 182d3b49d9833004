"""The manifest `videos/manifest.parquet`: the videos to judge, one per row, and the role that each method plays."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.parquet import read_schema, read_table
from common.runs import RunFolder

COLUMNS = ("method", "clip_id", "video", "reference", "audio", "seed")
# `image`: the input picture of a video; `group`: clips of one video or speaker, which are not independent. Of avatars:
# `motion`, how the particles move (audioavatar.export); `motion_reference`, how they moved in a fit of the real video;
# `turned`, the same talk before a camera that swings.
OPTIONAL_COLUMNS = ("image", "group", "motion", "motion_reference", "turned")
# Real videos are methods too: TRUTH is the ceiling of every metric, FLOOR holds other real clips.
TRUTH, FLOOR = "ground_truth", "real_vs_real"
# What the optional column `role` may say of a method: the system under test, the same system driven by the audio of
# another clip, and anything else to compare it with.
JUDGED, SWAPPED, CONTROL = "judged", "swapped", "control"
ROLES = (JUDGED, SWAPPED, CONTROL)


class ManifestError(UserError, ValueError):
    """The list of videos to judge is absent or not a manifest."""


@dataclass(frozen=True)
class Methods:
    """The generated methods of a run: `judged` is the one that the report is about, `swapped` its control with the
    audio of another clip ("" for none), `others` all that remain, controls first."""

    judged: str = ""
    swapped: str = ""
    others: tuple[str, ...] = ()

    @property
    def rivals(self) -> tuple[str, ...]:
        """What the judged method is compared with."""
        return (self.swapped, *self.others) if self.swapped else self.others

    @property
    def order(self) -> tuple[str, ...]:
        """The order in which tables and rows of videos show them, real videos first."""
        return (TRUTH, self.judged, *self.rivals) if self.judged else (TRUTH,)

    @property
    def comparisons(self) -> tuple[str, ...]:
        """The judged method against each rival, as `ScoreConfig.comparisons` has them."""
        return tuple(f"{self.judged}>{rival}" for rival in self.rivals)


def arrange(names: Collection[str], roles: Mapping[str, str]) -> Methods:
    """The methods `names` by their `roles` (method -> one of ROLES); without roles the first by name is judged."""
    generated = sorted(set(names) - {TRUTH, FLOOR})
    if not generated:
        return Methods()
    by_role = {role: [name for name in generated if roles.get(name) == role] for role in ROLES}
    judged = next(iter(by_role[JUDGED] or [name for name in generated if name not in roles] or generated))
    swapped = next((name for name in by_role[SWAPPED] if name != judged), "")
    rest = [name for name in (*by_role[CONTROL], *generated) if name not in (judged, swapped)]
    return Methods(judged, swapped, tuple(dict.fromkeys(rest)))


def read_roles(run: RunFolder) -> dict[str, str]:
    """Method -> role, of the methods that have one. Raises ManifestError for an unknown role, for two roles of one
    method, and for two judged or two swapped methods."""
    path = Path(run.root) / "videos" / "manifest.parquet"  # run.videos would create the folder
    if not path.exists() or "role" not in read_schema(path).names:
        return {}
    rows = read_table(path, columns=["method", "role"]).to_pylist()
    pairs = sorted({(row["method"], row["role"]) for row in rows if row["role"]})
    unknown = [f"{role!r} of {method}" for method, role in pairs if role not in ROLES]
    if unknown:
        raise ManifestError(f"{path} has the role {unknown[0]}; expected {', '.join(ROLES)} or none.")
    roles = dict(pairs)
    several = [role for role in (JUDGED, SWAPPED) if list(roles.values()).count(role) > 1]
    if several or len(roles) < len(pairs):
        raise ManifestError(
            f"{path} has the roles {', '.join(f'{method}: {role}' for method, role in pairs)}; expected one role a "
            f"method, and {JUDGED} and {SWAPPED} for one method each."
        )
    return roles


def read_manifest(run: RunFolder) -> list[dict]:
    """Rows of the manifest, sorted, with "" for an optional column that it lacks. Raises ManifestError naming what is
    missing."""
    path = Path(run.root) / "videos" / "manifest.parquet"  # run.videos would create the folder
    if not path.exists():
        raise ManifestError(f"{path} does not exist; generate the videos to judge first (pipeline step 'generate').")
    table = read_table(path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ManifestError(f"{path} lacks the columns {missing}; it must have {list(COLUMNS)}.")
    present = [name for name in OPTIONAL_COLUMNS if name in table.column_names]
    without = dict.fromkeys(OPTIONAL_COLUMNS, "")
    listed = table.select([*COLUMNS, *present]).to_pylist()
    rows = [
        without | {name: value for name, value in row.items() if value is not None or name == "seed"} for row in listed
    ]
    # The methods of one clip follow each other: they are held against the same real video.
    rows.sort(key=lambda row: (row["clip_id"], row["method"], row["seed"] or 0))
    names = [video_name(row) for row in rows]
    twice = [a for a, b in zip(names, names[1:], strict=False) if a == b]
    if twice:
        raise ManifestError(f"{path} lists {twice[0]} twice; give one row per method, clip and seed.")
    return rows


def video_name(row: Mapping) -> str:
    """The name of a row's video among all that are judged: "method/clip_id/seed"."""
    return f"{row['method']}/{row['clip_id']}/{row['seed'] or 0}"
