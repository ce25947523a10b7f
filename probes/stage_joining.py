"""Say what several stages of one pipeline measured together: table by table, from the recordings of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from .errors import RecordingError
from .joined_anatomy import joined_anatomy, of_stages, renamed
from .schema import PLACE, TABLES
from .sites import layout
from .stage_tables import events, numbered, one_rank, steps_of

if TYPE_CHECKING:
    import pandas as pd

    from .recording import Recording

ALIKE = 1e-5  # of its size: what is sent and what is received are the same bits, summed up twice
ROWS_AT_A_TIME = 200_000  # that are in memory
SENT = ("rms", "absmax", "mean")  # statistics of a state that are compared
_STATE_KEYS = ["step", "micro_step", "direction"]
Frames = Sequence["pd.DataFrame"]


def spans(n_steps: int, n_rows: int) -> Iterator[range]:
    """Yield the steps in order, so many at a time that a table of ``n_rows`` comes in parts of about ROWS_AT_A_TIME."""
    each = max(1, n_steps * ROWS_AT_A_TIME // max(1, n_rows))
    for first in range(0, n_steps, each):
        yield range(first, min(n_steps, first + each))


class Joint:
    """The recordings of all stages as one.

    Attributes:
        stages: the recordings, in the order of the forward.
        anatomy: of the whole model.
        manifest: of the joined recording.
        n_steps: behind the last step that all stages recorded.
    """

    def __init__(self, stages: Sequence[Recording]) -> None:
        """Check that the stages follow one another.

        Raises:
            RecordingError: a stage holds no single stack, or does not go on where the one before it ends.
        """
        self.stages = list(stages)
        steps = [stage.table("steps", columns=["step", "is_sampled"]) for stage in stages]
        self.n_steps = 1 + min(int(frame["step"].max()) if len(frame) else -1 for frame in steps)
        sampled = [set(frame["step"][frame["is_sampled"].fillna(False).astype(bool)]) for frame in steps]
        self._sampled = set.intersection(*sampled)
        self._apart = len({step for each in sampled for step in each if step < self.n_steps} - self._sampled)
        self._renames = _renames(stages)
        anatomies = [renamed(stage.anatomy, rename) for stage, rename in zip(stages, self._renames, strict=True)]
        self.anatomy = joined_anatomy(anatomies, self._proofs())
        blocks = [anatomy.stacks[0].n_blocks for anatomy in anatomies]
        depths = [len(anatomy.branches) for anatomy in anatomies]
        self._blocks = [sum(blocks[:index]) for index in range(len(blocks))]
        self._depths = [sum(depths[:index]) for index in range(len(depths))]
        self.manifest = self._manifest()

    def rows(self, name: str, steps: range | None) -> pd.DataFrame:
        """Return the rows of a table of these steps, None for a table without steps."""
        import pandas as pd

        frames = [stage.table(name, steps=steps) for stage in self.stages]
        if name == "steps":
            return steps_of(frames)
        if name == "ranks":
            return self._ranks(frames, steps)
        if name == "groups":
            frames = numbered(frames)
        elif name == "events":
            frames = [events(frames)]
        else:
            frames = [self._moved(index, name, frame) for index, frame in enumerate(frames)]
        kept = [frame for frame in frames if len(frame)]
        whole = pd.concat(kept, ignore_index=True) if kept else frames[0]
        keys = [key for key in ("step", "micro_step") if key in whole.columns]
        return whole.sort_values(keys, kind="stable", ignore_index=True) if keys else whole

    def _moved(self, index: int, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a stage's rows at their place in the whole."""
        if "step" in frame.columns:
            frame = frame[frame["step"].isin(self._sampled)]
        if set(PLACE) <= set(frame.columns):
            # The first state of a later stage is the last of the one before it.
            is_again = (frame["depth"] == 0) & (index > 0)
            frame = frame[~is_again.fillna(False)]
        frame = frame.copy()
        if "block" in frame.columns:
            is_block = frame["block"] >= 0
            frame.loc[is_block, "block"] += self._blocks[index]
        if "depth" in frame.columns:
            frame["depth"] += self._depths[index]
        for column in {"module_path", "name"} & set(TABLES[name]):
            frame[column] = frame[column].map(self._renames[index], na_action="ignore")
        return frame

    def _ranks(self, frames: Frames, steps: range | None) -> pd.DataFrame:
        """Return a row a stage and step, or those of all ranks where a stage has several."""
        import pandas as pd

        found = []
        for index, (stage, frame) in enumerate(zip(self.stages, frames, strict=True)):
            rows = frame if len(frame) else one_rank(stage, index, steps)
            found.append(rows[rows["step"].isin(self._sampled)])
        whole = pd.concat([frame for frame in found if len(frame)] or found[:1], ignore_index=True)
        return whole.sort_values(["step", "rank"], kind="stable", ignore_index=True)

    def _proofs(self) -> list[str]:
        """Compare what each stage sent with what the next received; return in sentences what was shown."""
        largest, n, unseen = 0.0, 0, []
        for index, (before, after) in enumerate(zip(self.stages, self.stages[1:], strict=False)):
            sent = _state(before, len(before.anatomy.branches), self.n_steps)
            received = _state(after, 0, self.n_steps)
            both = sent.add_suffix("_sent").join(received.add_suffix("_received"), how="inner")
            if both.empty:
                unseen.append(f"between stages {index} and {index + 1}")
                continue
            n += len(both)
            largest = max(largest, _expect_alike(index, both))
        told = [
            f"Joined from {len(self.stages)} stages of a pipeline. What a stage sends and what the next receives agree to "
            f"{largest:.1g} of their size, on {n:,} tensors."
        ]
        if unseen:
            told.append(f"Whether the stages go on where others end could not be shown {', '.join(unseen)}.")
        if self._apart:
            told.append(f"{self._apart:,} steps that some stages sampled and others did not are left out.")
        return told

    def _manifest(self) -> dict[str, Any]:
        heads = [stage.manifest for stage in self.stages]
        models = [head["model"] if isinstance(head.get("model"), dict) else {} for head in heads]
        status = [str(head.get("status", "")) for head in heads]
        unclosed = [f"stage {index}: {state}" for index, state in enumerate(status) if state != "closed"]
        tied = [
            [rename(name) for name in names]
            for model, rename in zip(models, self._renames, strict=True)
            for names in model.get("tied", [])
        ]
        first = {key: value for key, value in heads[0].items() if key != "stage"}
        return first | {
            "stages": len(heads),
            "status": "closed" if not unclosed else f"cut off: {', '.join(unclosed)}",
            "model": {
                "class_name": ", ".join(dict.fromkeys(str(model.get("class_name", "")) for model in models)),
                "n_parameters": sum(int(model.get("n_parameters", 0)) for model in models),
                "dtype": _words(models, "dtype"),
                "device": _words(models, "device"),
                "tied": tied,
            },
            "not_measured": self._not_measured(),
        }

    def _not_measured(self) -> list[str]:
        """Return what hooks do not see of the whole, and what else stages could not measure."""
        own = [
            [
                sentence
                for sentence in stage.manifest.get("not_measured", [])
                if sentence not in layout(stage.anatomy).not_measured and sentence not in stage.anatomy.problems
            ]
            for stage in self.stages
        ]
        return [*layout(self.anatomy).not_measured, *self.anatomy.problems, *of_stages(own)]


def _renames(stages: Sequence[Recording]) -> list[Callable[[str], str]]:
    """Return what stages' names become: themselves, or with the stage in front where several use one name."""
    names = [
        {name for branch in stage.anatomy.branches for name in (branch.module_path, *branch.parameters) if name}
        for stage in stages
    ]
    shared = sum(map(len, names)) > len(set().union(*names))
    return [partial(_with_stage, index) if shared else str for index in range(len(stages))]


def _with_stage(index: int, name: str) -> str:
    return f"stage{index}.{name}" if name else name


def _state(stage: Recording, depth: int, n_steps: int) -> pd.DataFrame:
    """Return the statistics of a stage's state at ``depth``, by step, micro-batch and direction."""
    import pandas as pd

    found = []
    for steps in spans(n_steps, stage.n_rows("activations")):
        frame = stage.table("activations", steps=steps, columns=[*_STATE_KEYS, "depth", "site", *SENT])
        found.append(frame[(frame["site"] == "state") & (frame["depth"] == depth)])
    whole = pd.concat(found) if found else stage.table("activations", steps=range(0))
    return whole.drop_duplicates(_STATE_KEYS).set_index(_STATE_KEYS)[list(SENT)]


def _expect_alike(index: int, both: pd.DataFrame) -> float:
    """Return by how much what was sent and received differs at most.

    Raises:
        RecordingError: it is not the same.
    """
    size = both["rms_sent"].abs().clip(lower=1e-300)
    apart = {name: (both[f"{name}_sent"] - both[f"{name}_received"]).abs() / size for name in ("rms", "mean")}
    apart["absmax"] = (both["absmax_sent"] - both["absmax_received"]).abs() / both["absmax_sent"].clip(lower=1e-300)
    largest = reduce(lambda a, b: a.combine(b, max), apart.values()).dropna()
    if (largest > ALIKE).any():
        worst = largest.idxmax()
        row = both.loc[[worst]].reset_index().iloc[0]
        raise RecordingError(
            f"Expected stage {index + 1} to receive what stage {index} sends, got RMS {row['rms_received']:.6g} for "
            f"{row['rms_sent']:.6g} ({row['direction']}, step {row['step']}, micro-batch {row['micro_step']}). They are not "
            "joined: each stage's own folder holds its recording."
        )
    return float(largest.max()) if len(largest) else 0.0


def _words(models: Sequence[Mapping[str, Any]], key: str) -> str:
    found = {word for model in models for word in str(model.get(key, "")).split(", ") if word}
    return ", ".join(sorted(found))
