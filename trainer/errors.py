"""What a person can mend: shown as one line, with exit code 2. Anything else is our bug and keeps its traceback.

UserError
├── InvalidConfig      a setting out of its range, or one that does not exist
└── TrainingDiverged   the loss is not finite any more
"""


class UserError(Exception):
    """The message says what arrived and what was expected."""


class InvalidConfig(UserError):
    pass


class TrainingDiverged(UserError):
    pass
