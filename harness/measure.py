"""Everything that is measured on the stored outputs of a run, in order: no backend is needed."""

from rich.progress import Progress

from harness.attack_effects import measure_attacks
from harness.changes import measure_changes
from harness.classification import measure_classification
from harness.diversity import measure_diversity
from harness.fairness.readings import measure_readings
from harness.generated_sets import measure_generation
from harness.hallucination import measure_hallucination
from harness.hallucination_maps import draw_maps
from harness.score import score_run
from harness.set_measures import measure_sets
from harness.stages import measure_stages
from harness.store import RunFolder
from harness.uncertainty import measure_uncertainty

STAGES = (
    score_run,
    measure_stages,
    measure_diversity,
    measure_changes,
    measure_attacks,
    measure_sets,
    measure_readings,
    measure_hallucination,
    measure_uncertainty,
    measure_generation,
    measure_classification,
)
"""Each appends the rows that are not there yet."""


def measure(folder: RunFolder, progress: Progress) -> None:
    """Bring the rows and the maps of a run up to its stored outputs.

    Raises:
        HarnessError: what is stored, or an instrument, is not this version's, or a network is missing.
    """
    for stage in STAGES:
        stage(folder, progress)
    draw_maps(folder)
