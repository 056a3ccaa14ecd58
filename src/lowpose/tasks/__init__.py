"""What a recipe's `task` decides: one module per task, each with the same functions.

| function | answers |
|---|---|
| READERS | kind of the registered readers that `data.kind` names |
| training_data(config), validation_data(config) | the splits of a recipe |
| build(config, data) | its model |
| check_fits(model, data) | raises where the model predicts other things than the data have |
| warn(config, data) | logs what is worth a line before training |
| training_reader(data, config) | random views of a split |
| predict_split(model, data, config, device) | predictions for a split, in its order |
| measure(model, config, data, found, bootstrap) | figures with intervals, as a report |
| read_as(config, model) | the trained head under other settings |
| save_predictions(path, data, found) | an .npz file |
| check_results() | raises where there is no result file in COCO's form |
| result_rows(model, config, data, found) | its rows |
| paired(model, config, data, saved) | sums per sample for paired intervals, and average precision or None |
"""

from __future__ import annotations

from types import ModuleType

from lowpose.config import RunConfig
from lowpose.tasks import classification, pose

TASKS: dict[str, ModuleType] = {"pose": pose, "classification": classification}


def task_of(config: RunConfig) -> ModuleType:
    return TASKS[config.task]
