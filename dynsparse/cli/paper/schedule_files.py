"""Schedule files: tables by epoch of learning rate, rewire period and temperature."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from dynsparse.cli.paper.draft import Draft
from dynsparse.cli.resuming import path_given
from dynsparse.config.reading import plain, read_file
from dynsparse.config.shipped import found
from dynsparse.errors import UserError
from dynsparse.schedules import NotNegative, Period, StepTable
from pipelines.common.text import nearest

TABLES: dict[str, TypeAdapter[StepTable]] = {
    "lr_schedule": TypeAdapter(NotNegative),
    "rewire_period_schedule": TypeAdapter(Period),
    "DeepR_temperature_schedule": TypeAdapter(NotNegative),
}


def read_schedules(draft: Draft) -> None:
    """Put the tables of --schedule-file into the draft, as a config would have them: overrides win over them."""
    if "--lr" in draft.given and draft.named("train.lr") != "steps":
        draft.put("train.lr", {"name": "steps"})
    if "--schedule-file" not in draft.given:
        return
    try:
        tables = read_tables(draft.given["--schedule-file"])
    except UserError as error:
        draft.wrong += error.lines
        return
    if "lr_schedule" in tables:
        if "--lr" in draft.given:
            draft.wrong.append(
                f"--lr and the lr_schedule of --schedule-file {draft.given['--schedule-file']} contradict each other; "
                f"give one of them"
            )
        if draft.named("train.lr") != "steps":
            draft.put("train.lr", {"name": "steps"})
        draft.put("train.lr.table", tables["lr_schedule"].as_yaml())
    if "rewire_period_schedule" in tables and draft.named("method") in ("dsr", "set"):
        draft.put("method.period", tables["rewire_period_schedule"].as_yaml())
    if "DeepR_temperature_schedule" in tables and draft.named("method") == "deepr":
        draft.put("method.temperature", tables["DeepR_temperature_schedule"].as_yaml())


def read_tables(name: str) -> dict[str, StepTable]:
    """Return the tables of a schedule file, found as given or in configs/schedules/.

    Raises UserError, a line for each mistake.
    """
    path = found(path_given("--schedule-file", name), "schedules")
    raw = plain(read_file(path, "--schedule-file", "configs/schedules/"))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no tables; write {', '.join(TABLES)}, each a list of '- epoch : value'")
    tables, wrong = {}, []
    for table, entries in raw.items():
        if table not in TABLES:
            wrong.append(f"{path}: {table}: unknown table{nearest(str(table), TABLES)}")
            continue
        try:
            tables[table] = TABLES[table].validate_python(entries)
        except ValidationError as error:
            wrong += [f"{path}: {table}: {details['ctx']['error']}" for details in error.errors()]
    if wrong:
        raise UserError(*wrong)
    return tables
