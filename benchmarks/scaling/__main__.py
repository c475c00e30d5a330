"""How a tilt's work scales with ranks: ``python -m benchmarks.scaling PART [--json FILE]``. Parts:

invariance  the answers of many ranks against that of one: every engine, both exchanges, both precisions
seams       the error of a known object at borders of tiles over that of the rest
traffic     bytes of a rank for small and large objects, tiled against replicated; memory of real ranks
overlap     sweeps with messages in flight over sweeps that wait for them, two real ranks, messages late or not
measure     strong and weak scaling over 1, 2, 4 and 8 real ranks
model       fits a model to ``measure`` (made anew, or read by --measured), checks it, and predicts 4 to 4096 GPUs;
            figures into --out

``--small`` takes the smallest sizes, to see that a part runs: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.limits import machine
from benchmarks.scaling import invariance, measure, overlap, predict, seams, traffic
from benchmarks.scaling.model import PARTS as PARTS_OF_TIME
from benchmarks.table import add_json_option, print_table, save_results
from hpcrec.engines import ENGINES

Tables = dict[str, list[dict[str, Any]]]
# Predictions are printed as two tables
KEYS: Final = ("GPUs", "exchange", "a tilt")
PARTS_COLUMNS: Final = tuple(f"{name} s" for name in PARTS_OF_TIME)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--small", action="store_true", help="the smallest sizes: figures mean nothing")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES, help="invariance: only these")
    parser.add_argument("--only", nargs="+", default=["checked", "counts", "memory"], help="traffic: only these tables")
    parser.add_argument("--measured", type=Path, nargs="+", help="model: what measure (and traffic) wrote, not anew")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="model: folder of the figures")
    add_json_option(parser)
    return parser.parse_args()


def _invariance(asked: argparse.Namespace, folder: Path) -> Tables:
    if asked.small:
        return {"invariance": list(invariance.rows(asked.engines[:1], invariance.CASES[-2:], ("double",), sweeps=2))}
    return {"invariance": invariance.measured(asked.engines)}


def _seams(asked: argparse.Namespace, folder: Path) -> Tables:
    if asked.small:
        return {"seams": seams.rows(seams.standard(12), engines=("gradient",), ranks=(4,), sweeps=2)}
    return {"seams": seams.rows(seams.standard())}


def _traffic(asked: argparse.Namespace, folder: Path) -> Tables:
    small: bool = asked.small
    makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "checked": lambda: traffic.checked(folder / "checked", *((2, 6) if small else ())),
        "counts": lambda: traffic.counts(((512, 128),), (512, 1024), 4) if small else traffic.counts(),
        "memory": lambda: traffic.memories(folder / "memory", *(((1, 2), 512) if small else ())),
    }
    return {f"traffic, {name}": makers[name]() for name in asked.only}


def _overlap(asked: argparse.Namespace, folder: Path) -> Tables:
    return {"overlap": overlap.rows(folder, **({"sweeps": 1, "scale": 4, "rounds": 1} if asked.small else {}))}


def _measure(asked: argparse.Namespace, folder: Path) -> Tables:
    sizes: dict[str, Any] = {"ranks": (1, 2), "sweeps": 1, "scale": 8} if asked.small else {}
    return {
        "pings": measure.pings(folder, 5 if asked.small else 50),
        "scaling": measure.rows(folder / "ranks", **sizes),
    }


def _model(asked: argparse.Namespace, folder: Path) -> Tables:
    known = _read(asked.measured) if asked.measured else _measure(asked, folder)
    rates = predict.fitted(known["scaling"], known["pings"])
    tables: Tables = {
        "parameters": predict.parameters(rates),
        "model over measured": predict.checks(known["scaling"], rates),
    }
    remembered = known.get("traffic, memory", [])
    if remembered:
        tables["model over measured, memory"] = predict.memory_checks(remembered, traffic.WINDOW, traffic.STEP)
    for load in (predict.ROMANOV, predict.XRAY):
        tables[load.name] = predict.predictions(load)
        tables[f"{load.name}: least GPUs"] = [
            {"exchange": exchange, "least GPUs that hold a tilt": predict.least_gpus(load, exchange)}
            for exchange in predict.EXCHANGES
        ]
    # Not before it is needed: it takes a second to load
    from benchmarks.scaling import plots

    asked.out.mkdir(parents=True, exist_ok=True)
    made = [plots.measured(known["scaling"], rates, asked.out / "measured.png")]
    if remembered:
        made.append(plots.memory(remembered, asked.out / "memory.png"))
    for name, load in (("romanov", predict.ROMANOV), ("xray", predict.XRAY)):
        made.append(plots.predicted(load.name, tables[load.name], asked.out / f"{name}.png"))
    print("figures:", *made)
    return tables


def _read(paths: Sequence[Path]) -> Tables:
    """Return the tables of files that parts wrote."""
    found: Tables = {}
    for path in paths:
        for row in json.loads(path.read_text())["rows"]:
            found.setdefault(row.pop("table"), []).append(row)
    missing = {"pings", "scaling"} - set(found)
    if missing:
        raise SystemExit(
            f"{', '.join(map(str, paths))}: no table {', '.join(sorted(missing))}; give what measure wrote"
        )
    return found


PARTS: Final[dict[str, Callable[[argparse.Namespace, Path], Tables]]] = {
    "invariance": _invariance, "seams": _seams, "traffic": _traffic, "overlap": _overlap, "measure": _measure,
    "model": _model,
}  # fmt: skip


def main() -> None:
    asked = arguments()
    # Time of day is asked of these only
    here = machine(priority=asked.part in ("overlap", "measure", "model") and not asked.small and not asked.measured)
    with tempfile.TemporaryDirectory() as folder:
        tables = PARTS[asked.part](asked, Path(folder))
    print(f"{here['cpu']}, {here['cores']} cores, load {here['load']:.1f}, {here['commit']}")
    for name, rows in tables.items():
        in_two = any(PARTS_COLUMNS[-1] in row for row in rows)
        print_table([{k: row[k] for k in row if not (in_two and k in PARTS_COLUMNS)} for row in rows], name)
        if in_two:
            print_table(
                [{k: row.get(k) for k in (*KEYS, *PARTS_COLUMNS)} for row in rows], f"{name}: parts of the time"
            )
    kept = save_results(
        f"scaling-{asked.part}", here, [{"table": n, **row} for n, rows in tables.items() for row in rows]
    )
    print(f"results: {kept}")
    if asked.json:
        asked.json.write_bytes(kept.read_bytes())


if __name__ == "__main__":
    main()
