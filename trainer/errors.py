"""What a person can mend: shown as one line, with exit code 2. Anything else is our bug and keeps its traceback.

UserError
├── InvalidConfig      a setting out of its range, or one that does not exist
├── TrainingDiverged   the loss or the weights are not finite any more
├── NotExportable      (export.py) the network cannot become a graph in which members replace each other
└── OutputExists       (standalone.py, pipeline.py) something is there that we must not replace
"""


class UserError(Exception):
    """The message says what arrived and what was expected."""


class InvalidConfig(UserError):
    pass


class TrainingDiverged(UserError):
    pass


class OutputExists(UserError):
    pass
