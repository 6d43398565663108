"""The script that measures everything on a device."""

import pytest

import measure

pytestmark = pytest.mark.example


def test_each_step_ends_and_leaves_what_it_printed(tmp_path, monkeypatch, capsys):
    steps = {
        "done": measure.Step(("-c", "import sys; print(sys.argv[1:])"), ("small",), 30),
        "failed": measure.Step(("-c", "raise SystemExit('why')"), (), 30),
        "stopped": measure.Step(
            ("-c", "import time; print('begun', flush=True); time.sleep(60)"), (), 3
        ),
    }
    monkeypatch.setattr(measure, "STEPS", steps)
    ends = measure.main(["--quick", "--out", str(tmp_path / "new")])
    assert ends == {name: name for name in steps}
    printed = {name: (tmp_path / "new" / f"{name}.txt").read_text() for name in steps}
    assert printed == {"done": "['small']\n", "failed": "why\n", "stopped": "begun\n"}
    out = capsys.readouterr().out
    assert all(name in out for name in steps)


def test_all_steps_take_ten_minutes_at_most():
    assert sum(step.seconds for step in measure.STEPS.values()) <= 600


@pytest.mark.long
def test_every_step_runs(tmp_path):
    ends = measure.main(["--quick", "--out", str(tmp_path)])
    texts = {name: (tmp_path / f"{name}.txt").read_text() for name in ends}
    assert set(ends.values()) == {"done"}, texts
    assert "| focal |" in texts["benchmark"]
    assert "value+grad s" in texts["heads"]
    assert "golden replay in float64" in texts["golden"]
