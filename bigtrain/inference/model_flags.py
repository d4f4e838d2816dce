"""The flags that say which model a command opens."""

import argparse


def add_model_flags(parser: argparse.ArgumentParser, weights: str | None = None) -> None:
    """--weights, --checkpoint and --dependency. `weights`: the default; None: `ema`, and those of an export."""
    parser.add_argument(
        "--weights",
        default=weights,
        help="averaged weights (ema), a run's own (raw), the name of an extra average, or sigma_rel=X for an average of that "
        f"width (ema.posthoc); default: {weights or 'ema, and those of an export'}",
    )
    parser.add_argument(
        "--checkpoint", default="newest", help="a run's newest (default), best (train.keep_best), or a step"
    )
    parser.add_argument(
        "--dependency",
        metavar="ROLE=PATH",
        action="append",
        default=[],
        help="take this run or export for another model that RUN needs, such as tokenizer=EXPORT; default: as its recipe says",
    )
