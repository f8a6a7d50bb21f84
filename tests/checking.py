"""The type checker that reads every signature of inat while the tests run, shapes included."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is welcome as a float
