"""The shared dataset is what its card says, and its script makes the same bytes."""

import resource
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT


def make(*words, **how):
    """Run data/make_flights.py; return the finished process."""
    script = [sys.executable, str(ROOT / "data/make_flights.py")]
    return subprocess.run([*script, *words], capture_output=True, text=True, **how)


def test_the_file_is_made_again_byte_for_byte(tmp_path):
    done = make("--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in ("flights.csv", "delivery.csv"):
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / name).read_bytes()


def test_the_delivery_differs_in_one_carriers_distances_only():
    flights = pd.read_csv(ROOT / "data/flights.csv", index_col="flight_id")
    delivery = pd.read_csv(ROOT / "data/delivery.csv", index_col="flight_id")
    true = flights[flights["scheduled"].str[5:7].isin(["07", "08", "09"])]
    assert (len(delivery), delivery.index.equals(true.index)) == (5149, True)
    changed = delivery.compare(true)
    assert set(changed.columns.get_level_values(0)) == {"distance"}
    assert changed.index.equals(true.index[true["carrier"] == "B6"])
    ratio = changed["distance"]["self"] / changed["distance"]["other"]
    assert ratio.between(1.6, 1.62).all()


def test_full_size_holds_every_flight_that_arrived(tmp_path):
    done = make("--rows", "all", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    full = pd.read_csv(tmp_path / "flights.csv")
    drawn = pd.read_csv(ROOT / "data/flights.csv")
    assert len(full) == 327_346
    assert full["flight_id"].is_unique
    same = full[full["flight_id"].isin(drawn["flight_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, drawn)


def test_what_cannot_be_written_whole_leaves_the_old_files(tmp_path):
    """No file may be longer than 100,000 bytes, as on a disk that fills up."""
    old = {name: f"the old {name}" for name in ("flights.csv", "delivery.csv")}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    limit = resource.RLIMIT_FSIZE, (100_000, 100_000)
    done = make("--out", tmp_path, preexec_fn=lambda: resource.setrlimit(*limit))
    assert done.returncode == 1
    assert done.stderr == f"cannot write {tmp_path}: File too large\n"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == old


@pytest.mark.parametrize("rows", ["0", "400000", "many"])
def test_a_wrong_number_of_rows_is_refused(tmp_path, rows):
    done = make("--rows", rows, "--out", str(tmp_path / "no"))
    assert done.returncode == 2
    assert "rows" in done.stderr
    assert not (tmp_path / "no").exists()


def test_the_card_is_true():
    flights = pd.read_csv(ROOT / "data/flights.csv", parse_dates=["scheduled"])
    card = (ROOT / "data/README.md").read_text()
    assert all(f"| `{column}` |" in card for column in flights.columns)
    assert len(flights) == 20_000
    assert flights["flight_id"].is_unique
    assert (flights["late"] == (flights["arr_delay"] > 15)).all()
    assert flights["temp"].isna().sum() == 102
    assert flights["wind_speed"].isna().sum() == 107
    assert flights["wind_speed"].max() == 42.58
    late = flights.groupby(flights["scheduled"].dt.month)["late"].mean().round(2)
    assert (late[9], late[12], late[6]) == (0.13, 0.32, 0.36)
    assert round(flights["late"].mean(), 3) == 0.235
    order = flights.sort_values(["scheduled", "flight_id"])
    assert order.index.equals(flights.index)
