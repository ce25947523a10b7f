"""Name every error that Rheoscope raises; each message says what was expected, what came, what to do.

RheoscopeError
├── BatchError          the batch does not fit the model
├── DiscoveryError      no residual stream was found
├── ProbeError          the probe cannot measure what it was asked to
├── RecordingError      a recording cannot be written or read
│   └── RecordingExistsError   the folder already holds one
├── DiagnosisError      a recording cannot be judged
├── ReportError         a report cannot be written
└── LabError            an experiment or an architecture is contradictory
"""


class RheoscopeError(Exception):
    """The base of every error raised on purpose."""


class BatchError(RheoscopeError):
    """The batch is of no known kind, or the model rejects it."""


class DiscoveryError(RheoscopeError):
    """The model's dataflow holds no residual stream."""


class ProbeError(RheoscopeError):
    """The probe cannot measure what it was asked to."""


class RecordingError(RheoscopeError):
    """A recording cannot be written or read."""


class RecordingExistsError(RecordingError):
    """The folder already holds a recording."""


class DiagnosisError(RheoscopeError):
    """A recording cannot be judged or compared."""


class ReportError(RheoscopeError):
    """A report cannot be written where it was asked for."""


class LabError(RheoscopeError):
    """An experiment or an architecture contradicts itself."""
