"""Writes artifact/tests/golden/tensorboard.tfevents with TensorBoard's own protobuf classes and record writer, and checks
that torch's SummaryWriter encodes a scalar as the same Event.

    python3 -m venv VENV && VENV/bin/pip install tensorboard torch
    VENV/bin/python tests/reference/tensorboard_golden.py
"""

import io
import pathlib
import tempfile

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

OUT = pathlib.Path(__file__).resolve().parents[2] / "artifact/tests/golden/tensorboard.tfevents"


def scalars(wall_time, step, values):
    entries = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values]
    return event_pb2.Event(wall_time=wall_time, step=step, summary=summary_pb2.Summary(value=entries))


EVENTS = [
    event_pb2.Event(wall_time=1767323045.678, file_version="brain.Event:2"),
    scalars(1767323046.0, 0, [("zero", 0.0)]),
    scalars(1767323046.25, 1, [("train/loss", 2.5), ("train/learning_rate", 1e-3)]),
    scalars(1767323047.0, 300, [("train/loss", -0.1), ("system/peak_rss_bytes", 5e9)]),
    event_pb2.Event(
        wall_time=1767323048.0,
        step=129,
        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
    ),
    scalars(1767323048.0, 129, [("train/loss", float("inf")), ("ünïcode", 1 / 3)]),
]


def torch_agrees():
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        writer.add_scalar("zero", 0.0, 0, walltime=1767323046.0)
        writer.add_scalar("train/loss", 2.5, 1, walltime=1767323046.25)
        writer.close()
        (file,) = pathlib.Path(folder).iterdir()
        raw = list(RawEventFileLoader(str(file)).Load())
    assert raw[-2] == EVENTS[1].SerializeToString(), raw[-2]
    assert raw[-1] == scalars(1767323046.25, 1, [("train/loss", 2.5)]).SerializeToString(), raw[-1]


def main():
    torch_agrees()
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in EVENTS:
        writer.write(event.SerializeToString())
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(buffer.getvalue())
    print(f"{OUT}: {len(buffer.getvalue())} bytes; torch's SummaryWriter agrees")


if __name__ == "__main__":
    main()
