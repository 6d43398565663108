"""Reader for `twostage/*.npz`: two-stage detectors of mmdet 3.3.0 (numpy only, no pickles).

`twostage/README.md` says how the files were made and what they hold, `twostage/notes.md` what was
learnt about every formula. The files are never edited.
"""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "twostage"


def names(kind):
    """The names of all files of a kind, such as "roi" or "prop"."""
    return sorted(path.stem for path in FOLDER.glob(f"{kind}_*.npz"))


def read(name):
    """(arrays by name, config) of a file."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("config")))
