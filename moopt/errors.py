"""Every error moopt raises on purpose. Each message says what came, what was expected and what to do.

    MooptError
    ├── SpaceError            a space, a variable or a configuration that does not fit it
    ├── ProblemError          a problem that breaks its contract
    │   └── CapabilityError   an algorithm needs something the problem does not offer
    ├── AlgorithmError        an algorithm that does not exist or was given bad settings
    │   └── SurrogateError    what was measured cannot be modelled; a search goes on without a model
    ├── BudgetError           a budget that no configuration meets
    ├── StudyError            a study that cannot be defined, loaded or run
    │   ├── StudyMismatch     the stored study is of another problem, algorithm or seed
    │   └── NoFeasibleTrial   nothing satisfies what was asked for
    ├── ExecutorError         the workers that evaluate
    │   ├── NotPortable       a problem that no other process can rebuild
    │   └── WorkerError       no worker could be started or set up
    ├── ExportError           a candidate that a format cannot hold, or an export that is damaged
    ├── BundleError           a study that cannot be bundled, or a bundle that was altered
    ├── ReportError           a card that a study does not have, or pictures that nothing here can draw
    ├── StorageError          a storage that cannot be read or written, or is not moopt's
    │   └── StorageInUse      another process owns the study
    └── BackendError          the quantized-model backend
        ├── ModelNotFound     an unknown model name, folder or file
        ├── QuantizationError a width, group size or format that a layer cannot have
        ├── MergeError        models that cannot be merged, or not in that way
        ├── TextError         text that is missing or too short
        └── MetricError       a user's metric that failed or returned nonsense
"""


class MooptError(Exception):
    """The root: catch it to catch everything moopt raises on purpose."""


class SpaceError(MooptError, ValueError):
    """A space, a variable or a configuration that does not fit it."""


class ProblemError(MooptError):
    """A problem that breaks its contract."""


class CapabilityError(ProblemError):
    """An algorithm needs something the problem does not offer."""


class AlgorithmError(MooptError, ValueError):
    """An algorithm that does not exist or was given bad settings."""


class SurrogateError(AlgorithmError):
    """What was measured cannot be modelled; a search goes on without a model."""


class BudgetError(MooptError, ValueError):
    """A budget that no configuration meets."""


class StudyError(MooptError):
    """A study that cannot be defined, loaded or run."""


class StudyMismatch(StudyError):
    """The stored study is of another problem, algorithm or seed."""


class NoFeasibleTrial(StudyError):
    """Nothing satisfies what was asked for."""


class ExecutorError(MooptError):
    """The workers that evaluate."""


class NotPortable(ExecutorError):
    """A problem that no other process can rebuild."""


class WorkerError(ExecutorError):
    """No worker could be started or set up.

    Attributes:
        traceback: What the worker said last.
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class ExportError(MooptError):
    """A candidate that a format cannot hold, or an export that is damaged."""


class BundleError(MooptError):
    """A study that cannot be bundled, or a bundle that was altered."""


class ReportError(MooptError):
    """A card that a study does not have, or pictures that nothing here can draw."""


class StorageError(MooptError):
    """A storage that cannot be read or written, or is not moopt's."""


class StorageInUse(StorageError):
    """Another process owns the study."""


class BackendError(MooptError):
    """The quantized-model backend."""


class ModelNotFound(BackendError):
    """An unknown model name, folder or file."""


class QuantizationError(BackendError, ValueError):
    """A width, group size or format that a layer cannot have."""


class MergeError(BackendError, ValueError):
    """Models that cannot be merged, or not in that way."""


class TextError(BackendError):
    """Text that is missing or too short."""


class MetricError(BackendError):
    """A user's metric that failed or returned nonsense."""
