"""Reads an event folder back with TensorBoard's EventAccumulator and compares every scalar with the run's journal: steps
that were taken again after a kill count once, as they were taken last.

    limbeck watch RUN --export-tensorboard DIR
    VENV/bin/pip install tensorboard && VENV/bin/python tests/conformance/event_files.py RUN/journal.jsonl DIR
"""

import json
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

FIELDS = {"loss": "train/loss", "learning_rate": "train/learning_rate", "grad_norm": "train/grad_norm"}


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def wanted(journal):
    """tag -> step -> value, a step that comes again dropping what followed it."""
    out = {tag: {} for tag in [*FIELDS.values(), "valid/loss", "valid/accuracy"]}
    for line in journal.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "train_step":
            for tag in out:
                out[tag] = {step: x for step, x in out[tag].items() if step < event["step"]}
            for field, tag in FIELDS.items():
                out[tag][event["step"]] = f32(event[field])
        elif event["event"] == "validated":
            out["valid/loss"][event["step"]] = f32(event["loss"])
            out["valid/accuracy"][event["step"]] = f32(event["accuracy"])
    return {tag: values for tag, values in out.items() if values}


def main(journal, folder):
    files = [path for path in pathlib.Path(folder).rglob("*tfevents*")]
    assert files, f"no event files under {folder}"
    accumulator = EventAccumulator(str(files[0].parent), size_guidance={"scalars": 0})
    accumulator.Reload()
    compared = 0
    for tag, values in wanted(pathlib.Path(journal)).items():
        read = {scalar.step: scalar.value for scalar in accumulator.Scalars(tag)}
        assert read == values, f"{tag}: {len(read)} read, {len(values)} wanted"
        compared += len(values)
    print(f"{compared} scalars of {len(files)} event files equal the journal's; tags {accumulator.Tags()['scalars']}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
