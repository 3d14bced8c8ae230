"""The epochs of a run -> what each rule of selection would report of it."""

from pipeline.train.record import Record

OPTIMISTIC = "best_on_test"
RULES = ("last", "best_on_val", OPTIMISTIC)
_SELECTED_BY = {"best_on_val": "val_war", OPTIMISTIC: "test_war"}


def by_rule(record: Record) -> dict[str, tuple[float, float]]:
    """Rule -> (UAR, WAR) in [0, 1] on the test videos, at the epoch that it selects.

    ``best_on_val`` is there only if the run held videos out to select by. {} if it was not scored
    on test videos. Of equal epochs the first is selected.
    """
    epochs = record.epochs()
    if "test_war" not in epochs:
        return {}
    selected = {"last": -1}
    selected |= {r: int(epochs[own].argmax()) for r, own in _SELECTED_BY.items() if own in epochs}
    return {
        rule: (float(epochs["test_uar"][selected[rule]]), float(epochs["test_war"][selected[rule]]))
        for rule in RULES
        if rule in selected
    }
