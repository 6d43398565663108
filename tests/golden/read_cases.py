"""Reader for the folders `twostage`, `onestage` and `queries` (numpy only, no pickles).

Each folder's README.md says how its files were made and what they hold, and its notes.md, where it
has one, what was learnt about every formula. The files are never edited.
"""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent


def names(folder, kind):
    """The names of all files of a kind in a folder: ("twostage", "roi") or ("queries", "dab")."""
    return sorted(path.stem for path in (GOLDEN / folder).glob(f"{kind}_*.npz"))


def read(folder, name):
    """(arrays by name, config) of a file; of one without a config the config is None."""
    with np.load(GOLDEN / folder / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    config = arrays.pop("config", None)
    return arrays, config if config is None else json.loads(str(config))
