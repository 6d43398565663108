"""Reader for `queries/*.npz`: criteria of query-based detectors (numpy only, no pickles).

`queries/README.md` says how the files were made and what they hold. The files are never edited.
"""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "queries"


def names(kind):
    """The names of all files of a kind, such as "dab"."""
    return sorted(path.stem for path in FOLDER.glob(f"{kind}_*.npz"))


def read(name):
    """(arrays by name, config) of a file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("config")))
