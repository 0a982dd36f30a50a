"""Options that several commands take, each described once."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

RunName = Annotated[str, Parameter(help="A run's id, the beginning of one, or its folder.")]
Runs = Annotated[
    Path | None,
    Parameter(name="--runs", help="Folder that holds runs. Default: $DREAMSA_RUNS or ./runs."),
]
Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON lines on stdout instead of text.")
]
Quiet = Annotated[
    bool, Parameter(name=["--quiet", "-q"], negative="", help="Print only the resulting path.")
]
Set = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        help="Change any setting: --set distill.guidance_scale=30. Repeatable.",
    ),
]
Seed = Annotated[
    int | None, Parameter(help="Seed of all random numbers. Default: 0, or the parent's.")
]
Steps = Annotated[int | None, Parameter(help="Optimizer steps. Default: the preset's.")]
AscentSteps = Annotated[
    int | None,
    Parameter(
        help="Number of steps at the start that ascend. Default where an edit ascends: a fifth."
    ),
]
Scale = Annotated[float, Parameter(help="S: factor on the learning rate while ascending.")]
JudgeName = Annotated[
    str | None, Parameter(name="--judge", help="toybox, a CLIP model's folder, or its Hub id.")
]
Arms = Annotated[
    str, Parameter(help="all, or names with commas: plain,ascent,interpolate. See docs/edits.md.")
]
Methods = Annotated[str, Parameter(help="all, or names with commas: sds,pairs.")]
Seeds = Annotated[int, Parameter(help="Number of seeds.")]
Workers = Annotated[int | None, Parameter(help="Processes. Default: one per core.")]
Hours = Annotated[
    float | None, Parameter(help="Save and exit after this time; the same command continues.")
]
Device = Annotated[str | None, Parameter(help="auto, cpu, cuda or cuda:N. Default: auto.")]
Mesh = Annotated[
    bool | None, Parameter(help="Whether the finished run gets mesh.glb. Default: yes.")
]
Name = Annotated[
    str | None,
    Parameter(help="Id of the new run. Default: made of the prompt, such as a-rabbit-7f3a."),
]
Anyway = Annotated[
    bool,
    Parameter(
        negative="",
        help="Do it although the model does not know some words, or will take days on this CPU.",
    ),
]
DryRun = Annotated[
    bool,
    Parameter(
        name="--dry-run",
        negative="",
        help="Check, print the configuration and the expected time; run nothing.",
    ),
]
